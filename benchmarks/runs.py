"""Runs of a study, one JSON line each, resumable: a run that stands in the file already is not run again."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import DatasetDict

from ule_hf.arguments import parse
from ule_hf.experiment import fit

ROOT = Path(__file__).parents[1]
PLAIN = ["--preset", "paper", "--unlearning_weight", "0", "--student_head_start", "0"]


def run_once(results: Path, key: dict[str, object], data: DatasetDict, options: Sequence[str]) -> None:
    """Train as `recipes/train.py` would with ``options`` and append ``key`` and the figures to ``results``."""
    if key in (line["key"] for line in read(results)):
        return
    torch.set_num_threads(1)  # so that two studies can share two cores, and sums are added in one order
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*options, "--output_dir", folder, "--disable_tqdm", "true", "--report_step_cost", "false"]
        data_args, model_args, args, _ = parse(arguments)
        start = time.perf_counter()
        figures = fit(data, data_args.augmentation, model_args, args)
    figures["run"].pop("command")
    if model_args.checkpoint_path:  # where it lies is this machine's business
        figures["run"]["model"]["checkpoint_path"] = Path(model_args.checkpoint_path).name
        options = [Path(o).name if o == model_args.checkpoint_path else o for o in options]
    options = [option.removeprefix(f"{ROOT}/") for option in options]
    line = {"key": key, "options": options, "seconds": round(time.perf_counter() - start, 1), **figures}
    results.parent.mkdir(exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(key, f"{figures['teacher']['test_worst_group_accuracy']:.3f}", file=sys.stderr, flush=True)


def read(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.is_file() else []
