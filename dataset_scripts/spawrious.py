"""One combination of Spawrious as a folder of Parquet: build, verify, write, and publish.

    python dataset_scripts/spawrious.py --combination o2o_hard --data_dir spawrious224 --output_dir spawrious-o2o-hard
    python dataset_scripts/spawrious.py --combination m2m_easy --output_dir spawrious-m2m-easy \
        --push_to_hub me/spawrious-m2m-easy

Without --data_dir the authors' archive is downloaded. Where it holds a file that cannot be decoded, --skip_bad_images
leaves it out and says so in the card. Then `ule-hf train --dataset spawrious --combination o2o_hard --data_dir
spawrious-o2o-hard`, or `datasets.load_dataset("me/spawrious-m2m-easy")`.
"""

from __future__ import annotations

import sys

from ule_hf.data import spawrious
from ule_hf.data.commands import build_main

if __name__ == "__main__":
    sys.exit(build_main(spawrious, __doc__))
