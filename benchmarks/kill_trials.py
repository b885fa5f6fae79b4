"""Kills a tiny run at random moments and while it saves, resumes it, and compares it with one that was left alone.

python -m benchmarks.kill_trials --trials 60   # prints the row of docs/trust.md; a few minutes on one core

Half of the kills come at a moment drawn from the run's whole length, half while a folder is being written. Each trial
is killed one to three times; then weights, optimiser, scheduler, random states, log and results have to be those of the
run that was left alone, bit for bit (but for the seconds that things took).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from datasets import DatasetDict

from ule_hf.arguments import ModelArguments
from ule_hf.checkpoints import PARTIAL, checkpoints_of, last_checkpoint
from ule_hf.config import ULEConfig
from ule_hf.data import load
from ule_hf.experiment import fit

TIMES = ("_runtime", "_per_second", "_seconds")
# steps between saves do not divide the eight of an epoch: a run is resumed within epochs and between them
OPTIONS = {
    "preset": "auto",
    "trial_accuracy": 1.0,  # fails, so that what comes after is there too
    "head_start_accuracy": 0.5,  # in the first epoch, so that errors are balanced
    "load_best_model_at_end": True,
    "student_head_start": 0.5,
    "unlearning_warmup": 1.0,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "cosine",
    **{f"{what}_strategy": "steps" for what in ("save", "eval", "logging")},
    **{f"{what}_steps": 3 for what in ("save", "eval", "logging")},
    "save_total_limit": 1,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "disable_tqdm": True,
}


def small_digits() -> DatasetDict:
    data = load("digits", correlation=0.9)
    sizes = {"train": 128, "validation": 32, "test": 32}
    return DatasetDict({split: data[split].shuffle(seed=0).select(range(n)) for split, n in sizes.items()})


def train(data: DatasetDict, folder: Path) -> None:
    """The run, from its last checkpoint where it has one."""
    resume = {"resume_from_checkpoint": "latest"} if last_checkpoint(folder) else {"overwrite_output_dir": True}
    args = ULEConfig(str(folder), **OPTIONS, **resume)
    fit(data, "crop", ModelArguments(model="test_resnet", image_size=32), args)


# Not os.fork: a process whose OpenMP threads have run once leaves children that wait for them for ever.
CONTEXT = multiprocessing.get_context("forkserver")


def start(folder: Path) -> BaseProcess:
    """The run in a process of its own, which has imported everything already."""
    CONTEXT.set_forkserver_preload([__name__])
    process = CONTEXT.Process(target=run, args=(folder,))
    process.start()
    return process


def run(folder: Path) -> None:
    torch.set_num_threads(1)
    os.chdir(folder.parent)  # so that every run's card names the same folder
    os.dup2(os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    train(small_digits(), Path(folder.name))


def wait(process: BaseProcess, folder: Path) -> None:
    process.join()
    if process.exitcode:
        raise SystemExit(f"a run failed:\n{folder.with_suffix('.log').read_text()[-3000:]}")


def kill(process: BaseProcess, folder: Path, draw: random.Random, seconds: float, while_saving: bool) -> str | None:
    """What was being written when the process was killed ("" for nothing); None if it had finished before."""
    deadline = time.monotonic() + draw.uniform(0, seconds)
    while process.is_alive():
        if time.monotonic() > deadline and (not while_saving or partials(folder)):
            time.sleep(draw.uniform(0, 0.05) if while_saving else 0)
            process.kill()
            process.join()
            return " ".join(partials(folder))
        time.sleep(0.0005)
    return None


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(f"{PARTIAL}*")]


def outcome(folder: Path) -> dict[str, object]:
    """Everything a run ends with, without the seconds."""
    last = checkpoints_of(folder)[-1]
    state = json.loads((folder / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = Path(state["best_model_checkpoint"]).name
    # a line of the whole call: its loss is the mean since the run was resumed
    state["log_history"] = [without_times(line) for line in state["log_history"] if "train_runtime" not in line]
    results = json.loads((folder / "results.json").read_text())
    files = ("model.safetensors", "student/model.safetensors", "config.json", "README.md")
    return {
        "results": results | {"run": without_times(results["run"]) | {"git_revision": None}},  # others may commit
        **{name: (folder / name).read_bytes() for name in files},
        **{f"last {name}": (last / name).read_bytes() for name in files[:2]},
        **{name: torch.load(last / name) for name in ("optimizer.pt", "scheduler.pt")},
        "random states": torch.load(last / "rng_state.pth", weights_only=False),
        "state": state,
        "checkpoint": last.name,
    }


def without_times(figures: dict) -> dict:
    return {name: value for name, value in figures.items() if not name.endswith(TIMES)}


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool((one == other).all()) if hasattr(one, "all") else one == other


def run_trials(trials: int, seed: int, base: Path) -> dict[str, int]:
    """Counts of trials, kills, kills while a folder was being written, and trials whose outcome differed.

    Raises:
        SystemExit: a run that was resumed failed; its log is shown.
    """
    draw = random.Random(seed)
    alone = base / "alone" / "run"
    alone.parent.mkdir()
    began = time.monotonic()
    wait(start(alone), alone)
    seconds = time.monotonic() - began
    expected = outcome(alone)
    counts = {"trials": trials, "kills": 0, "kills_while_saving": 0, "different": 0}
    for trial in range(trials):
        folder = base / f"trial-{trial}" / "run"
        folder.parent.mkdir()
        for attempt in range(draw.randint(1, 3)):
            written = kill(start(folder), folder, draw, seconds, while_saving=(trial + attempt) % 2 == 0)
            counts["kills"] += written is not None
            counts["kills_while_saving"] += bool(written)
        wait(start(folder), folder)
        found = outcome(folder)
        differing = [name for name in expected if not same(expected[name], found[name])]
        counts["different"] += bool(differing)
        if differing or partials(folder):
            print(f"trial {trial}: {differing} {partials(folder)}", file=sys.stderr)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as base:
        print(json.dumps(run_trials(options.trials, options.seed, Path(base))))


if __name__ == "__main__":
    main()
