"""What a ULE step costs beside a plain one, measured on a copy of the pair."""

from __future__ import annotations

import copy
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ule_hf.config import ULEConfig
    from ule_hf.pair import StudentTeacher


def measure_step_cost(
    pair: StudentTeacher, images: Tensor, labels: Tensor, args: ULEConfig, repeats: int = 3
) -> dict[str, float]:
    """Forward and backward of a plain step (the teacher alone) and of a ULE step, interleaved; medians.

    With ``unlearning_interval`` k the ULE step is the mean of k: one with the term and k − 1 without.
    Nothing of the run is touched: the pair is copied and the random state restored.

    Args:
        images: ``[B, C, H, W]``.
        labels: ``[B]``.

    Returns:
        ``plain_step_seconds``, ``ule_step_seconds`` and their ratio ``step_cost``.
    """
    pair = copy.deepcopy(pair).train()
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    plain_loss = torch.nn.functional.cross_entropy

    def plain() -> Tensor:
        output = pair.teacher(images)
        return plain_loss(output if isinstance(output, Tensor) else output.logits, labels)

    def ule(weight: float = args.unlearning_weight) -> Tensor:
        options = {"train_student": not args.freeze_student, "unlearning_fraction": args.unlearning_fraction}
        return pair(images, labels, unlearning_weight=weight, **options).loss

    steps = {"plain": plain, "ule": ule, "without_term": partial(ule, 0.0)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for _ in range(repeats + 1):
            for name, loss in steps.items():
                pair.zero_grad()
                _wait(images)
                start = time.perf_counter()
                with torch.autocast(images.device.type, dtype, enabled=args.bf16):
                    value = loss()
                value.backward()
                _wait(images)
                seconds[name].append(time.perf_counter() - start)
    # the first of each warms up
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    others = args.unlearning_interval - 1
    ule_seconds = (medians["ule"] + others * medians["without_term"]) / (1 + others)
    return {
        "plain_step_seconds": medians["plain"],
        "ule_step_seconds": ule_seconds,
        "step_cost": ule_seconds / medians["plain"],
    }


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
