"""Photographs with an ImageNet MobileNetV2: the recipe's figures on a folder of your own, one seed a line, resumable.

    python -m benchmarks.photographs --data_dir WATERBIRDS50 --checkpoint_path mobilenetv2_100.safetensors

WATERBIRDS50 holds bird photographs pasted on forest and sea photographs, with labels, splits and places of the
official Waterbirds metadata for 50 species. It is composed and reduced data: its figures are not to be set beside
published ones.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from benchmarks.runs import PLAIN, read, run_once
from ule_hf.comparison.statistics import mean_and_spread
from ule_hf.data import load

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "waterbirds50.jsonl"
SHARED = ROOT.parent / "shared" / "data"
COMMON = [
    *("--model", "mobilenetv2_100", "--image_size", "96", "--augmentation", "flip", "--num_train_epochs", "4"),
    *("--learning_rate", "3e-4", "--weight_decay", "1e-2", "--lr_scheduler_type", "cosine"),
    *("--per_device_train_batch_size", "32", "--per_device_eval_batch_size", "128"),
]
METHODS = {
    "plain training": PLAIN,
    "ULE `paper`": ["--preset", "paper"],
    "ULE `paper`, control `constant`": ["--preset", "paper", "--control", "constant"],
    "ULE `path`": ["--preset", "path", "--student_head_start", "1"],
    "ULE `path`, control `constant`": ["--preset", "path", "--student_head_start", "1", "--control", "constant"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=SHARED / "waterbirds50")
    parser.add_argument("--checkpoint_path", default=SHARED / "weights" / "mobilenetv2_100.tf2_in1k.safetensors")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        columns = {"image_column": "img_filename", "label_column": "y", "split_column": "split"}
        data = load("folder", data_dir=arguments.data_dir, attribute_columns=("place",), **columns)
        common = [*COMMON, "--checkpoint_path", str(arguments.checkpoint_path)]
        for seed, (method, options) in product(range(arguments.seeds), METHODS.items()):
            run_once(RESULTS, {"method": method, "seed": seed}, data, [*common, *options, "--seed", str(seed)])
    print(table())


def table() -> str:
    """Test accuracies in per cent; mean and spread over seeds."""
    rows = ["| method | seeds | worst group | last epoch | student's | average | train-weighted average |"]
    rows.append("|---|---|---|---|---|---|---|")
    worst = "test_worst_group_accuracy"
    for method in METHODS:
        runs = [line for line in read(RESULTS) if line["key"]["method"] == method]
        cells = [
            mean_and_spread([run["teacher"][worst] for run in runs]),
            mean_and_spread([run["last_epoch"]["teacher"][worst] for run in runs]),
            mean_and_spread([run["student"][worst] for run in runs]),
            mean_and_spread([run["teacher"]["test_accuracy"] for run in runs]),
            mean_and_spread([run["teacher"]["test_train_weighted_accuracy"] for run in runs]),
        ]
        rows.append(f"| {method} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
