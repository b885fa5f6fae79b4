"""`ule-hf verify` and the programs of `dataset_scripts/`: thin fronts for a benchmark's module."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

from ule_hf.data.publish import check_right, push, write_folder
from ule_hf.data.verify import Counts, count_groups, label_of, verify_images
from ule_hf.errors import UleError


def verify_main(benchmarks: dict[str, ModuleType], argv: list[str]) -> int:
    """`ule-hf verify`: 0 where a copy has the published counts and good images; else 2, with the table or reason."""
    parser = argparse.ArgumentParser("ule-hf verify", description="Is this copy the published benchmark?")
    commands = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, module in benchmarks.items():
        command = commands.add_parser(name, help=module.CARD.title)
        source = command.add_mutually_exclusive_group()
        source.add_argument("--data_dir", help="Raw folder, archive, folder of Parquet, or Hub repository.")
        if hasattr(module, "verify_metadata"):
            source.add_argument("--metadata", help="Only count what this file says, without images.")
        _add_options(command, module)
    args = parser.parse_args(argv)
    module = benchmarks[args.name]
    options = {option: getattr(args, option) for option in module.OPTIONS}
    try:
        if getattr(args, "metadata", None):
            if Path(args.metadata).is_dir():
                raise UleError(f"{args.metadata} is a folder; name the metadata file in it, or use --data_dir")
            counts, checked = module.verify_metadata(args.metadata, **options), "counts only, no image was looked at"
        else:
            data = module.load(args.data_dir, **options)
            verify_images(label_of(data), data, module.IMAGE_SIZE)
            if "variant" in label_of(data):  # such as one that --skip_bad_images made
                raise UleError(f"this is {label_of(data)}")
            counts, checked = count_groups(data), "counts, names and all images"
    except UleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{_table(counts)}\n{args.name}: the published benchmark ({checked})")
    return 0


def build_main(module: ModuleType, description: str, argv: list[str] | None = None) -> int:
    """Builds a benchmark, verifies it, writes it as Parquet with a card, and publishes it where that is asked for.

    A program is no more than ``sys.exit(build_main(waterbirds, __doc__))``. Of the module are used ``load(data_dir,
    variant=None, **options)``, ``OPTIONS`` (name of an option -> its default, a string or False), ``IMAGE_SIZE`` and
    ``CARD``.

    Returns:
        The exit status: 0, or 2 with one message on standard error.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="Raw folder, archive, or Hub repository; by default the official source.")
    parser.add_argument("--output_dir", required=True, type=Path, help="Folder that is made for Parquet and card.")
    parser.add_argument("--variant", help="Name of data that are not the published ones.")
    parser.add_argument("--push_to_hub", metavar="OWNER/NAME", help="Upload the folder as a dataset repository.")
    parser.add_argument("--i_have_the_right_to_publish", action="store_true", help="Where the licence restricts that.")
    _add_options(parser, module)
    args = parser.parse_args(argv)
    options = {option: getattr(args, option) for option in module.OPTIONS}
    try:
        if args.push_to_hub:
            check_right(module.CARD, args.i_have_the_right_to_publish)  # before hours of building
        data = module.load(args.data_dir, variant=args.variant, **options)
        verify_images(label_of(data), data, None if args.variant else module.IMAGE_SIZE)
        write_folder(data, args.output_dir, module.CARD)
        print(f"{_table(count_groups(data))}\n{label_of(data)}: written to {args.output_dir}")
        if args.push_to_hub:
            push(args.output_dir, args.push_to_hub, module.CARD, args.i_have_the_right_to_publish)
    except UleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _add_options(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    for option, default in module.OPTIONS.items():
        if default is False:
            parser.add_argument(f"--{option}", action="store_true")
        else:
            parser.add_argument(f"--{option}", default=default, help=f"By default {default}.")


def _table(counts: Counts) -> str:
    rows = [(split, group, size) for split, sizes in counts.items() for group, size in sizes.items() if size]
    width = max(len(group) for _, group, _ in rows)
    return "\n".join(f"{split:<10}  {group:<{width}}  {size:>7}" for split, group, size in rows)
