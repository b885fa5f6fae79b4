"""Waterbirds as a folder of Parquet: build, verify, write, and publish where you may; or composed from its sources.

    python dataset_scripts/waterbirds.py --data_dir waterbird_complete95_forest2water2.tar.gz --output_dir waterbirds
    python dataset_scripts/waterbirds.py --output_dir waterbirds --push_to_hub me/waterbirds \
        --i_have_the_right_to_publish
    python dataset_scripts/waterbirds.py compose --cub_dir CUB_200_2011 --places_dir data_large \
        --metadata metadata.csv --output_dir waterbirds-composed

With the official metadata.csv the composition has the published groups, and masks of the birds; it goes on where it was
stopped. Then `ule-hf train --dataset waterbirds --data_dir waterbirds`, or `datasets.load_dataset("me/waterbirds")`.
"""

from __future__ import annotations

import argparse
import sys

from ule_hf.data import waterbirds
from ule_hf.data.commands import build_main
from ule_hf.data.waterbirds_compose import compose
from ule_hf.errors import UleError


def compose_main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("waterbirds.py compose", description="Birds before backgrounds, with masks.")
    parser.add_argument("--cub_dir", required=True, help="CUB_200_2011.")
    parser.add_argument("--places_dir", required=True, help="data_large of Places365-Standard.")
    parser.add_argument("--output_dir", required=True, help="Folder that is made in the official layout.")
    parser.add_argument("--segmentations_dir", help="By default segmentations in --cub_dir.")
    parser.add_argument("--metadata", help="The official metadata.csv; by default split and backgrounds are drawn.")
    parser.add_argument("--seed", type=int, default=0, help="Of what is drawn.")
    try:
        compose(**vars(parser.parse_args(argv)))
    except UleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(compose_main(arguments[1:]) if arguments[:1] == ["compose"] else build_main(waterbirds, __doc__))
