"""Does the student teach? Preset `exchange` beside its controls, on beds whose shortcut is known.

    python -m benchmarks.beds --data_dir FOLDER           # runs what results/beds.jsonl lacks, then prints the table
    python -m benchmarks.beds --data_dir FOLDER --table   # prints the table only

FOLDER holds mnist/mnist_10k.npz and cifar10/, see :func:`ule_hf.data.dominoes.build_dominoes`. The beds of
:mod:`benchmarks.mnist_beds`, with a small ResNet: the shortcut in the same half always, in either half, two shortcuts,
and none; and Dominoes. One recipe for all of them, and nothing selected: the last epoch counts.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.mnist_beds import half_bed
from benchmarks.runs import read, run_once
from ule_hf.comparison.statistics import mean_and_spread
from ule_hf.data import load

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "beds.jsonl"
EXCHANGE = ["--preset", "exchange"]
COMMON = [
    *("--model", "test_resnet", "--augmentation", "none", "--learning_rate", "2e-3", "--weight_decay", "0.01"),
    *("--num_train_epochs", "12", "--lr_scheduler_type", "cosine"),
    *("--per_device_train_batch_size", "64", "--per_device_eval_batch_size", "256"),
]
METHODS = {
    "plain training": ["--preset", "paper", "--unlearning_weight", "0"],
    "`exchange`": EXCHANGE,
    "control `constant`": [*EXCHANGE, "--control", "constant"],
    "control `shuffled`": [*EXCHANGE, "--control", "shuffled"],
    "student never trained": [*EXCHANGE, "--student_learning_rate", "0"],
    "student trained throughout": [*EXCHANGE, "--freeze_student", "false"],
    "`exchange`, grid 6x2": [*EXCHANGE, "--grid", "6x2"],
    "preset `path`": ["--preset", "path", "--grid", "2x2", "--num_train_epochs", "14"],  # two of them its head start
}
FIRST_FOUR = list(METHODS)[:4]
# bed: its methods, and how many seeds
BEDS = {
    "half, 1.0": ([*list(METHODS)[:6], "preset `path`"], 5),
    "moving, 1.0": ([*list(METHODS)[:6], "preset `path`"], 5),
    "dominoes, 0.95": (FIRST_FOUR, 5),
    "dominoes, 1.0": (FIRST_FOUR, 5),
    "half, 0.95": (FIRST_FOUR, 5),
    "moving, 0.95": (FIRST_FOUR, 3),
    "no shortcut": (["plain training", "`exchange`"], 3),
    "dominoes, 0.5": (["plain training", "`exchange`"], 3),
    "two, 1.0": (["plain training", "`exchange`", "`exchange`, grid 6x2"], 3),
}


def build(bed: str, data_dir: Path, seed: int):
    """The bed's splits and the options that fit them."""
    kind, _, correlation = bed.partition(", ")
    if kind == "dominoes":
        return load("dominoes", data_dir=data_dir, correlation=float(correlation), seed=seed), ["--image_size", "48"]
    digits = np.load(data_dir / "mnist" / "mnist_10k.npz")
    options = {"correlation": float(correlation or 0.5), "moving": kind == "moving", "second": kind == "two"}
    size = "60" if kind == "two" else "40"  # what is 56 or 84 × 28 pixels, squeezed into a square
    return half_bed(digits["images"], digits["labels"], seed, **options), ["--image_size", size]


def table() -> str:
    """Last epoch's figures in per cent, mean and spread over seeds."""
    rows = ["| bed | method | seeds | worst group | average | the student's worst group |", "|---" * 6 + "|"]
    for bed, (methods, _) in BEDS.items():
        for method in methods:
            runs = [line for line in read(RESULTS) if line["key"]["bed"] == bed and line["key"]["method"] == method]
            if not runs:
                continue
            figures = [
                ("teacher", "worst_group_accuracy"),
                ("teacher", "accuracy"),
                ("student", "worst_group_accuracy"),
            ]
            cells = [
                mean_and_spread([run["last_epoch"][model][f"test_{figure}"] for run in runs])
                for model, figure in figures
            ]
            if method == "plain training":
                cells[2] = ""  # a second plain model
            rows.append(f"| {bed} | {method} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--beds", nargs="*", default=list(BEDS), choices=list(BEDS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        for seed, bed in product(range(max(seeds for _, seeds in BEDS.values())), arguments.beds):
            methods, seeds = BEDS[bed]
            if seed >= seeds:
                continue
            data, size = build(bed, arguments.data_dir, seed)
            for method in filter(arguments.methods.__contains__, methods):
                options = [*COMMON, *METHODS[method], *size, "--seed", str(seed)]
                run_once(RESULTS, {"bed": bed, "method": method, "seed": seed}, data, options)
    print(table())


if __name__ == "__main__":
    main()
