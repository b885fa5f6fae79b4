"""The groups of every benchmark: published counts, and those that the builder makes of the official metadata.

    python benchmarks/dataset_counts.py --metadata ../shared/data/metadata --output results/dataset_counts.md

The metadata are not part of this repository: ``waterbirds/metadata.csv``, and ``list_attr_celeba`` with
``list_eval_partition`` in ``celeba/``. Every row of them goes through the builder that users run; the pictures are
stand-ins, one file under all names. Where metadata are missing the benchmark is left out. Spawrious and UrbanCars have
no metadata files: their loaders read whole trees of stand-ins in the published layouts.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import datasets
import PIL.Image
from datasets import DatasetDict

from ule_hf.data import celeba, load, spawrious, urbancars, waterbirds
from ule_hf.data.verify import Counts, count_groups
from ule_hf.errors import UleError

#: Names that one file may have on common file systems.
_LINKS = 30_000


def stand_in_pictures(root: Path, images: Iterable[str], size: tuple[int, int]) -> None:
    """A black JPEG under each of the paths."""
    root.mkdir(parents=True, exist_ok=True)
    picture = root / "stand-in.jpg"
    for number, image in enumerate(images):
        if number % _LINKS == 0:
            picture.unlink(missing_ok=True)
            PIL.Image.new("RGB", size).save(picture)
        file = root / image
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(picture, file)


def waterbirds_of(metadata: Path, root: Path) -> DatasetDict:
    """What the loader makes of ``metadata.csv``, in the empty folder ``root``."""
    stand_in_pictures(root, waterbirds.read_metadata(metadata)["image"], size=(64, 64))
    shutil.copy(metadata, root / "metadata.csv")
    return load("waterbirds", data_dir=root)


def celeba_of(metadata: Path, root: Path) -> DatasetDict:
    """What the loader makes of the two tables in ``metadata``, in the empty folder ``root``."""
    for file in metadata.glob("list_*"):
        shutil.copy(file, root)
    names = (f"{number:06d}.jpg" for number in range(1, 202_600))
    stand_in_pictures(root / "img_align_celeba", names, celeba.IMAGE_SIZE)
    return load("celeba", data_dir=root)


def spawrious_tree(root: Path) -> Path:
    """The archive's folders, 3168 pictures in each."""
    folders = product("01", spawrious.LOCATIONS, spawrious.LABELS)
    numbers = range(1, spawrious.FOLDER_SIZE + 1)
    names = (f"{half}/{place}/{breed}/{place}_{breed}_{n}.png" for half, place, breed in folders for n in numbers)
    stand_in_pictures(root, names, spawrious.IMAGE_SIZE)
    return root


def urbancars_tree(root: Path) -> Path:
    """The published folders of both correlations, with as many pictures as the paper's proportions give."""
    of_split = {"0.95": ("train",), "0.5": ("train", "validation", "test")}
    names = (
        f"{urbancars.folder_of(correlation)}/{urbancars.FOLDERS[split]}/"
        f"obj-{label}_bg-{bg}_co_occur_obj-{co}/{number:03d}.jpg"
        for correlation, splits in of_split.items()
        for split in splits
        for (label, bg, co), size in zip(
            product(urbancars.LABELS, repeat=3), urbancars.PUBLISHED[correlation][split].values(), strict=True
        )
        for number in range(size)
    )
    stand_in_pictures(root, names, urbancars.IMAGE_SIZE)
    return root


def rows(name: str, published: Counts, found: Counts) -> list[str]:
    """Lines of the table."""
    return [
        f"| {name} | {split} | {group} | {size} | {found[split][group]} |"
        for split, sizes in published.items()
        for group, size in sizes.items()
    ]


def report(metadata: Path) -> str:
    """The table, and what the refused copies of Waterbirds' metadata are refused with."""
    official = metadata / "waterbirds" / "metadata.csv"
    table, refused = [], []
    if official.is_file():
        with tempfile.TemporaryDirectory() as root:
            table += rows("waterbirds", waterbirds.PUBLISHED, count_groups(waterbirds_of(official, Path(root))))
        for other in sorted(official.parent.glob("metadata_*.csv")):
            try:
                waterbirds.verify_metadata(other)
            except UleError as error:
                refused.append(f"`{other.name}`, refused:\n\n```\n{error}\n```")
    if (metadata / "celeba").is_dir():
        with tempfile.TemporaryDirectory() as root:
            found = count_groups(celeba_of(metadata / "celeba", Path(root)))
        table += rows("celeba", celeba.published(**celeba.OPTIONS), found)
    with tempfile.TemporaryDirectory() as folder:
        root = spawrious_tree(Path(folder) / "spawrious224")
        for combination, published in spawrious.PUBLISHED.items():
            found = count_groups(load("spawrious", data_dir=root, combination=combination))
            table += rows(f"spawrious {combination}", published, found)
    with tempfile.TemporaryDirectory() as folder:
        root = urbancars_tree(Path(folder) / "urbancars")
        for correlation, published in urbancars.PUBLISHED.items():
            found = count_groups(load("urbancars", data_dir=root, correlation=correlation))
            table += rows(f"urbancars {correlation}", published, found)
    header = ["| benchmark | split | group | published | built |", "|---|---|---|---:|---:|"]
    return "\n".join([*header, *table]) + "\n" + "".join(f"\n{block}\n" for block in refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metadata", type=Path, required=True, help="Folder with waterbirds/ and celeba/.")
    parser.add_argument("--output", type=Path, default=Path("results/dataset_counts.md"))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)  # nobody loads the stand-ins again
        text = report(args.metadata)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
