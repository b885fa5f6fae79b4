"""The digits table: both shortcuts, correlations 0.95 and 1.0, three seeds, both presets and their controls.

python -m benchmarks.digits          # runs what is missing in results/digits.jsonl, then prints the table
python -m benchmarks.digits --table  # prints the table only
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from benchmarks.runs import PLAIN, read, run_once
from ule_hf.comparison.statistics import mean_and_spread
from ule_hf.data import load

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "digits.jsonl"
RECIPE = ["--config", str(ROOT / "recipes" / "digits" / "default.yaml")]
METHODS = {
    "plain training": PLAIN,
    "ULE `paper`": ["--preset", "paper"],
    "ULE `paper`, control `constant`": ["--preset", "paper", "--control", "constant"],
    "ULE `path`": ["--preset", "path"],
    "ULE `path`, control `constant`": ["--preset", "path", "--control", "constant"],
    "ULE `exchange`": ["--preset", "exchange"],
    "ULE `exchange`, control `constant`": ["--preset", "exchange", "--control", "constant"],
}
SEEDS = 3
BEDS = list(product(("patch", "half"), (0.95, 1.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        for seed, (kind, correlation), (method, options) in product(range(SEEDS), BEDS, METHODS.items()):
            data = load("digits", kind=kind, correlation=correlation, seed=seed)
            key = {"shortcut": kind, "correlation": correlation, "method": method, "seed": seed}
            run_once(RESULTS, key, data, [*RECIPE, *options, "--seed", str(seed)])
    print(summary(), table(), sep="\n\n")


def runs_of(kind: str, correlation: float, method: str) -> list[dict]:
    bed = {"shortcut": kind, "correlation": correlation, "method": method}
    return [line for line in read(RESULTS) if bed.items() <= line["key"].items()]


def summary() -> str:
    """Worst group of the teacher: the epoch selected by worst class / the last epoch; one row a bed."""
    rows = ["| shortcut | correlation | " + " | ".join(METHODS) + " |", "|---" * (2 + len(METHODS)) + "|"]
    worst = "test_worst_group_accuracy"
    for kind, correlation in BEDS:
        cells = []
        for method in METHODS:
            runs = runs_of(kind, correlation, method)
            if not runs:
                cells.append("")
                continue
            selected = mean_and_spread([run["teacher"][worst] for run in runs])
            fewer = f" ({len(runs)} of {SEEDS} seeds)" * (len(runs) < SEEDS)
            cells.append(
                f"{selected} / {mean_and_spread([run['last_epoch']['teacher'][worst] for run in runs])}{fewer}"
            )
        rows.append(f"| {kind} | {correlation:g} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def table() -> str:
    """Worst group of the test split, in per cent; the student beside each teacher, and both epochs' figures."""
    rows = [
        "| shortcut | correlation | method | teacher | teacher, last epoch | student | average |",
        "|---|---|---|---|---|---|---|",
    ]
    for (kind, correlation), method in product(BEDS, METHODS):
        runs = runs_of(kind, correlation, method)
        if not runs:
            continue
        worst = "test_worst_group_accuracy"
        cells = [
            mean_and_spread([run["teacher"][worst] for run in runs]),
            mean_and_spread([run["last_epoch"]["teacher"][worst] for run in runs]),
            mean_and_spread([run["student"][worst] for run in runs]),
            mean_and_spread([run["teacher"]["test_accuracy"] for run in runs]),
        ]
        rows.append(f"| {kind} | {correlation:g} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
