"""How the cost of a step grows with batch, picture and processes, and whether the data path keeps up.

python -m benchmarks.scaling --model resnet18

One thread a process, on the CPU; seconds are process CPU time, medians of interleaved repetitions, forward and
backward without the optimiser. "ULE" is preset `paper`. With two processes (gloo) each has a batch of its own, and the
seconds are those of the first: what they are more than with one process is the cost of sharing gradients. The data
path is that of `benchmarks.loaders` for its stand-in of Waterbirds, decoded and augmented.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.loaders import BATCH, make_waterbirds
from benchmarks.step_cost import Clock, gradients_cleared, keep_memory, models_and_batch, plain, run, ule, variant_of
from ule_hf.backbones import load_backbone
from ule_hf.data import load
from ule_hf.data.preprocessing import transforms_of
from ule_hf.pair import StudentTeacher

CPU = torch.device("cpu")


def seconds_of(steps: dict[str, Callable[[], None]], model: nn.Module, repeats: int) -> dict[str, float]:
    clock = Clock(CPU)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            with gradients_cleared(model):
                seconds[name].append(clock.seconds(step))
    return {name: statistics.median(of_step[1:]) for name, of_step in seconds.items()}  # 0 warms up


def measure(model: str, batch_size: int, image_size: int, repeats: int, processes: int = 1) -> dict[str, float]:
    """Seconds of a plain and of a ULE step."""
    torch.manual_seed(0)
    student, teacher, images, labels = models_and_batch(model, batch_size, image_size, CPU)
    pair = StudentTeacher(student, teacher, variant_of("paper"))
    of_plain, of_ule = teacher, pair
    if processes > 1:
        of_plain, of_ule = DistributedDataParallel(teacher), DistributedDataParallel(pair)
    losses = {"plain": partial(plain, [of_plain]), "ule": partial(ule, of_ule)}
    return seconds_of({name: partial(run, step, images, labels) for name, step in losses.items()}, pair, repeats)


def one_of_two(rank: int, meeting: str, found: str, model: str, args: argparse.Namespace) -> None:
    """What each of two processes runs; the first one leaves its figures in the file ``found``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    seconds = measure(model, args.batch_size, args.image_size, args.repeats, processes=2)
    if rank == 0:
        torch.save(seconds, found)
    dist.destroy_process_group()


def with_two_processes(args: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        meeting, found = f"{folder}/meeting", f"{folder}/found.pt"
        torch.multiprocessing.spawn(one_of_two, (meeting, found, args.model, args), nprocs=2)
        return torch.load(found)


def loader_speed(image_size: int) -> float:
    """Images a second of one core's time."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        make_waterbirds(Path(folder), count=BATCH)
        train = load("waterbirds", data_dir=Path(folder), variant="measured")["train"]
        _, processor = load_backbone("test_resnet", label_names=["a", "b"], image_size=image_size, seed=0)
        training, _ = transforms_of(train, processor, "published", seed=0)
        batches = train.with_transform(training)
        seconds = [Clock(CPU).seconds(lambda: batches[:BATCH]) for _ in range(6)]
        return BATCH / statistics.median(seconds[1:])


def row(name: str, batch_size: int, seconds: dict[str, float]) -> str:
    cells = [seconds["plain"], seconds["ule"], seconds["ule"] / seconds["plain"]]
    appetite = batch_size / seconds["ule"]
    return f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + f" | {appetite:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--image_sizes", type=int, nargs="+", default=[64, 160])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    keep_memory("benchmarks.scaling")
    torch.set_num_threads(1)
    print(f"{args.model}\n\n| | plain, s | ULE, s | ratio | images/s a ULE process takes |\n|---|---:|---:|---:|---:|")

    def show(batch_size: int, image_size: int) -> float:
        found = measure(args.model, batch_size, image_size, args.repeats)
        print(row(f"batch {batch_size}, {image_size} pixels", batch_size, found), flush=True)
        return batch_size / found["ule"]

    appetite = show(args.batch_size, args.image_size)
    for batch_size in args.batch_sizes:
        show(batch_size, args.image_size)
    for image_size in args.image_sizes:
        show(args.batch_size, image_size)
    name = f"batch {args.batch_size} in each of two processes, {args.image_size} pixels"
    print(row(name, args.batch_size, with_two_processes(args)), flush=True)
    speed = loader_speed(args.image_size)
    print(f"\nThe data path gives {speed:.0f} images a second of one core's time at {args.image_size} pixels:", end=" ")
    print(f"one process of it feeds {speed / appetite:.1f} that train.")


if __name__ == "__main__":
    main()
