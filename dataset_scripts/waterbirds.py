"""Waterbirds as a folder of Parquet: build, verify, write, and publish where you may.

    python dataset_scripts/waterbirds.py --data_dir waterbird_complete95_forest2water2.tar.gz --output_dir waterbirds
    python dataset_scripts/waterbirds.py --output_dir waterbirds --push_to_hub me/waterbirds \
        --i_have_the_right_to_publish

Then `ule-hf train --dataset waterbirds --data_dir waterbirds`, or `datasets.load_dataset("me/waterbirds")`.
"""

from __future__ import annotations

import sys

from ule_hf.data import waterbirds
from ule_hf.data.commands import build_main

if __name__ == "__main__":
    sys.exit(build_main(waterbirds, __doc__))
