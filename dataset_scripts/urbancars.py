"""UrbanCars: compose it from its sources, then verify it, write it as Parquet, and publish it where you may.

    python dataset_scripts/urbancars.py segment --lists metadata --stanford_cars stanford_cars --masks masks
    python dataset_scripts/urbancars.py compose --lists metadata --stanford_cars stanford_cars --masks masks \
        --lvis lvis --coco coco --places places --output_dir urbancars-images
    python dataset_scripts/urbancars.py --data_dir urbancars-images --output_dir urbancars

Both commands go on where they were stopped. The lists are `create_datasets/urbancars/metadata` of
facebookresearch/Whac-A-Mole; `ule_hf.data.urbancars_build.Sources` says what each folder holds. Then `ule-hf train
--dataset urbancars --data_dir urbancars` (or `urbancars-images`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ule_hf.data import urbancars
from ule_hf.data.commands import build_main
from ule_hf.data.urbancars_build import Sources, build_urbancars
from ule_hf.data.urbancars_build.segment import CHECKPOINT, CarSegmenter, segment_cars
from ule_hf.errors import UleError


def segment(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("urbancars.py segment", description="Masks of the cars, with MaskFormer.")
    for folder in ("lists", "stanford_cars", "masks"):
        parser.add_argument(f"--{folder}", type=Path, required=True)
    parser.add_argument("--segmenter", default=CHECKPOINT, help=f"Hub id or folder; by default {CHECKPOINT}.")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    nothing = Path()
    sources = Sources(args.lists, args.stanford_cars, args.masks, lvis=nothing, coco=nothing, places=nothing)
    cars = sources.cars()
    segment_cars(cars, args.stanford_cars, args.masks, CarSegmenter.from_pretrained(args.segmenter, args.device))


def compose(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("urbancars.py compose", description="Images and masks in the published layout.")
    folders = ("lists", "stanford_cars", "masks", "lvis", "coco", "places")
    for folder in folders:
        parser.add_argument(f"--{folder}", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--correlation", default="0.95", choices=urbancars.CORRELATIONS, help="Of training.")
    parser.add_argument("--seed", type=int, default=0, help="The published set has 0.")
    args = parser.parse_args(argv)
    sources = Sources(**{folder: getattr(args, folder) for folder in folders})
    build_urbancars(sources, args.output_dir, args.correlation, args.seed)


def main(argv: list[str]) -> int:
    commands = {"segment": segment, "compose": compose}
    if not argv or argv[0] not in commands:
        return build_main(urbancars, __doc__, argv)
    try:
        commands[argv[0]](argv[1:])
    except UleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
