"""CelebA as a folder of Parquet: build, verify, write, and publish where you may.

    python dataset_scripts/celeba.py --data_dir celeba --output_dir celeba-blond
    python dataset_scripts/celeba.py --data_dir celeba --target Smiling --attribute Eyeglasses --output_dir celeba-smile

``celeba`` is a folder with img_align_celeba (folder or zip), list_attr_celeba and list_eval_partition (txt or csv).
Then `ule-hf train --dataset celeba --data_dir celeba-blond`.
"""

from __future__ import annotations

import sys

from ule_hf.data import celeba
from ule_hf.data.commands import build_main

if __name__ == "__main__":
    sys.exit(build_main(celeba, __doc__))
