"""What a ULE step costs beside a plain training step of the same model, each lever on its own, and the peak memory.

python -m benchmarks.step_cost --models resnet18 --json step_cost.json
python -m benchmarks.step_cost --models resnet18 --profile    # where the time of a ULE step goes

A step is forward and backward, without the optimiser. Every repetition runs all cases once, in a random order, and the
ratio is taken within the repetition: what else the machine does hits all cases alike. On a CPU the clock is the
process's CPU time on one thread, on a GPU CUDA events. Peak memory is weights and whatever the allocator has handed
out at most during the step: CUDA's own count, or on a CPU the profiler's record of every allocation and release.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ule_hf.attribution import Score, attribution_map, class_score, input_gradient
from ule_hf.backbones import is_convolutional, load_backbone
from ule_hf.pair import StudentTeacher, twice_differentiable_attention
from ule_hf.second_order import RULES, fast_double_backward
from ule_hf.unlearning import unlearning_term
from ule_hf.variant import PRESETS, Variant, parse_grid

MODELS = ["resnet18", "resnet50", "mobilenetv2_100", "vit_tiny_patch16_224", "convnext_tiny"]
LEVERS = {
    "convolution rule": [F.conv1d, F.conv2d, F.conv3d],
    "batch norm rule": [F.batch_norm],
    "activation rules": [F.relu, F.relu6, F.hardtanh, F.gelu],
}
# glibc gives large blocks back to the system at every release, and each step then pays for page faults that belong to
# nobody: keep what was once allocated.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": "67108864"}

Step = Callable[[Tensor, Tensor], Iterator[Tensor]]  # from a batch to the losses, each to call backward on


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).logits


def plain(models: list[nn.Module], images: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Each model in turn: a step of ordinary training."""
    for model in models:
        yield F.cross_entropy(logits_of(model, images), labels)


def side_by_side(models: list[nn.Module], images: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """The same with one backward of the summed losses, so that both graphs are held at once."""
    yield sum(F.cross_entropy(logits_of(model, images), labels) for model in models)


def obvious(pair: StudentTeacher, rules: list[Callable], images: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """ULE as one writes it first; ``rules`` are the functions of `second_order` that the teacher's forward uses."""
    variant = pair.variant
    images = images.detach().requires_grad_()
    with twice_differentiable_attention():
        student_logits = logits_of(pair.student, images)
    with patch.dict(RULES, {f: RULES[f] for f in rules}, clear=True), fast_double_backward():
        teacher_logits = logits_of(pair.teacher, images)
    scores = [class_score(logits, labels, variant.score) for logits in (student_logits, teacher_logits)]
    of_student = input_gradient(scores[0], images, retain_graph=True)
    of_teacher = input_gradient(scores[1], images, create_graph=True)
    maps = [attribution_map(a, variant.grid, variant.map_sign, variant.map_norm) for a in (of_student, of_teacher)]
    term = unlearning_term(*maps, variant.term).mean()
    yield F.cross_entropy(student_logits, labels) + F.cross_entropy(teacher_logits, labels) + term


def ule(
    pair: StudentTeacher, images: Tensor, labels: Tensor, weights: tuple[float, ...] = (1.0,), **options: object
) -> Iterator[Tensor]:
    """ULE as built, one step for each weight of the term."""
    for weight in weights:
        yield pair(images, labels, unlearning_weight=weight, **options).loss


def obvious_but_for_the_student(pair: StudentTeacher, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """The student as built; the teacher without any rule."""
    with patch.dict(RULES, clear=True):
        yield from ule(pair, images, labels)


def variant_of(preset: str, **changes: object) -> Variant:
    choices = {name: value for name, value in PRESETS[preset].items() if name in Variant.__dataclass_fields__}
    return Variant(**{**choices, "grid": parse_grid(choices["grid"]), **changes})


def cases(student: nn.Module, teacher: nn.Module, score: Score) -> dict[str, tuple[Step, int]]:
    """Name → (what to run, how many steps that is)."""
    paper = StudentTeacher(student, teacher, variant_of("paper", score=score))
    path = StudentTeacher(student, teacher, variant_of("path"))
    found = {
        "plain": (partial(plain, [teacher]), 1),
        "two plain models, one after the other": (partial(plain, [student, teacher]), 1),
        "two plain models, one backward": (partial(side_by_side, [student, teacher]), 1),
        "obvious": (partial(obvious, paper, []), 1),
    }
    found |= {f"obvious + {name}": (partial(obvious, paper, rules), 1) for name, rules in LEVERS.items()}
    found["obvious + student's backward first"] = (partial(obvious_but_for_the_student, paper), 1)
    found["ule"] = (partial(ule, paper), 1)
    if score != "log_prob":
        log_prob = StudentTeacher(student, teacher, variant_of("paper", score="log_prob"))
        found["ule, log_prob"] = (partial(ule, log_prob), 1)
    found["ule, interval 4"] = (partial(ule, paper, weights=(4.0, 0.0, 0.0, 0.0)), 4)
    found["ule, quarter of the batch"] = (partial(ule, paper, unlearning_fraction=0.25), 1)
    found["ule, path"] = (partial(ule, path), 1)
    found["ule, path, quarter of the batch"] = (partial(ule, path, unlearning_fraction=0.25), 1)
    exchange = StudentTeacher(student, teacher, variant_of("exchange"))
    found["ule, exchange"] = (partial(ule, exchange, train_student=False), 1)
    return found


def run(step: Step, images: Tensor, labels: Tensor, bf16: bool = False) -> None:
    """Forward under autocast where asked for, backward outside of it, as the Trainer does."""
    losses = step(images, labels)
    while True:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = next(losses, None)
        if loss is None:
            return
        loss.backward()


class Clock:
    """Seconds of a call: CPU time of the process, or CUDA events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, step: Callable[[], None]) -> float:
        if self.device.type == "cpu":
            start = time.process_time()
            step()
            return time.process_time() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / 1000


def peak_memory(step: Callable[[], None], device: torch.device) -> int:
    """Bytes that the step needs at most beyond what was allocated before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    held = peak = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def show_profile(step: Callable[[], None], device: torch.device) -> None:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as record:
        step()
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = record.key_averages()
    total = sum(getattr(average, order) for average in averages)
    arithmetic = ("conv", "mm", "gemm", "xmma", "cutlass", "linear")
    shares: dict[str, float] = defaultdict(float)
    for average in averages:
        bound = any(part in average.key.lower() for part in arithmetic)
        shares["bound by arithmetic" if bound else "bound by memory"] += getattr(average, order) / total
    print(averages.table(sort_by=order, row_limit=25, max_name_column_width=50))
    print(", ".join(f"{name} (products and convolutions or not): {share:.0%}" for name, share in shares.items()))


@contextmanager
def gradients_cleared(*models: nn.Module) -> Iterator[None]:
    yield
    for model in models:
        model.zero_grad(set_to_none=True)


def measure(name: str, bf16: bool, args: argparse.Namespace, device: torch.device) -> dict[str, dict[str, object]]:
    """case → median, lowest and highest ratio, seconds of a step, peak bytes."""
    student, teacher, images, labels = models_and_batch(name, args.batch_size, args.image_size, device)
    chosen = cases(student, teacher, args.score)
    if args.compile:
        chosen["plain, compiled"] = (partial(plain, [torch.compile(teacher)]), 1)
    chosen = {
        case: (partial(run, step, images, labels, bf16), steps)
        for case, (step, steps) in chosen.items()
        if case in (args.cases or [case])
    }

    if args.profile:
        for case, (step, _) in chosen.items():
            step()
            print(f"{name}, {case}")
            show_profile(step, device)
        return {}
    clock, rng = Clock(device), random.Random(0)
    seconds: dict[str, list[float]] = {case: [] for case in chosen}
    for _ in range(args.repeats + 1):
        for case in rng.sample(list(chosen), len(chosen)):
            step, steps = chosen[case]
            with gradients_cleared(student, teacher):
                seconds[case].append(clock.seconds(step) / steps)
    weights = sum(t.nbytes for t in [*teacher.parameters(), *teacher.buffers()])
    results = {}
    for case, (step, _) in chosen.items():
        with gradients_cleared(student, teacher):
            peak = peak_memory(step, device) + weights * (1 if case.startswith("plain") else 2)
        ratios = [own / one for own, one in zip(seconds[case][1:], seconds["plain"][1:], strict=True)]  # 0 warms up
        results[case] = {
            "ratio": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
            "seconds": round(statistics.median(seconds[case][1:]), 4),
            "peak_mib": round(peak / 2**20, 1),
        }
    return results


def table(results: dict[str, dict[str, dict]]) -> str:
    """One column a model: ratio (lowest to highest) and peak memory."""
    names = list(dict.fromkeys(case for of_model in results.values() for case in of_model))
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for case in names:
        cells = []
        for of_model in results.values():
            found = of_model.get(case)
            shown = found and f"{found['ratio']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f}), {{:.0f}} MiB"
            cells.append(shown.format(found["peak_mib"]) if found else "")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def keep_memory(module: str) -> None:
    """Start ``module`` anew with ``KEEP_MEMORY``, which glibc reads at the start of a process only."""
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | KEEP_MEMORY)


def models_and_batch(
    name: str, batch_size: int, image_size: int, device: torch.device
) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Student, teacher, images and labels, in the memory format in which they are trained."""
    student, teacher = (
        load_backbone(name, label_names=["a", "b"], image_size=image_size, seed=seed)[0].to(device).train()
        for seed in (0, 1)
    )
    memory_format = torch.channels_last if is_convolutional(teacher) else torch.contiguous_format
    for model in (student, teacher):
        model.to(memory_format=memory_format)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device).contiguous(memory_format=memory_format)
    return student, teacher, images, torch.arange(batch_size, device=device) % 2


def machine(device: torch.device) -> dict[str, object]:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
        name = f"{platform.machine()} {model}, {os.cpu_count()} cores, one thread used"
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm architectures.")
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--image_size", type=int, default=224 if on_gpu else 112)
    parser.add_argument("--batch_size", type=int, default=64 if on_gpu else 16)
    parser.add_argument("--score", choices=[s for s in get_args(Score) if s != "difference"], default="predicted")
    parser.add_argument("--repeats", type=int, default=20 if on_gpu else 5)
    parser.add_argument("--cases", nargs="+", help="Some of the rows only; 'plain' must be among them.")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast on a CPU; a GPU measures both.")
    parser.add_argument("--compile", action="store_true", help="A row for a plain step of the compiled model too.")
    parser.add_argument("--json", type=Path, help="Where the figures go as well.")
    parser.add_argument("--profile", action="store_true", help="Show where the time of each case goes, instead.")
    args = parser.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    if not on_gpu:
        keep_memory("benchmarks.step_cost")
        torch.set_num_threads(1)
    report = {"machine": machine(device), "batch_size": args.batch_size, "image_size": args.image_size}
    report |= {"score": args.score, "repeats": args.repeats, "clock": "CUDA events" if on_gpu else "process CPU time"}
    for precision in ["fp32", "bf16"] if on_gpu else ["bf16" if args.bf16 else "fp32"]:
        key = "ratios" if precision == "fp32" else "ratios_bf16"
        results: dict[str, dict[str, dict]] = {}
        for name in args.models:
            results[name] = measure(name, precision == "bf16", args, device)
            if args.profile:
                continue
            heading = f"{precision}, {args.batch_size} pictures of {args.image_size} pixels"
            print(f"\n{heading}\n\n{table(results)}", flush=True)
            report[key] = {
                name: {case: found["ratio"] for case, found in rows.items()} for name, rows in results.items()
            }
            report[f"{key}_in_full"] = results
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
