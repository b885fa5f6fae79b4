"""How the student's errors should weigh, tried on frozen features: linear student, linear teacher, a second a run.

    python -m benchmarks.frozen_features --data_dir FOLDER  # waterbirds50/, urbancars_like/, weights/; prints the table

As preset `auto` after a failed trial: the student is frozen at 90 %, the teacher trained plainly through the first
third, the student goes on to 95 %, and the weights begin; a student that does not get there is not listened to. The
balance of classes alone stands beside, because every other balance is one of classes too. Without a shortcut means:
trained on 70 % of validation and test, which are balanced, and tested on the rest.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from benchmarks.runs import ROOT
from ule_hf.backbones import load_backbone
from ule_hf.balancing import balancing_weights, relative_difficulty, tally
from ule_hf.comparison.statistics import mean_and_spread
from ule_hf.data import load
from ule_hf.data.transforms import EvalTransform
from ule_hf.metrics import accuracy_by_group

BEDS = {"waterbirds50": ("waterbirds", 160), "urbancars_like": ("urbancars", 144)}
FORMS = ("plain training", "balance of classes", "balance", "relative difficulty", "balance of relative difficulty")
SEEDS, EPOCHS, BATCH, LEARNING_RATE = range(6), 8, 32, 1e-3
FIRST, SECOND, HEAD_START = 0.9, 0.95, 2  # accuracies at which the student is frozen, and epochs at most


@dataclass
class Features:
    """``x`` [N, D], ``labels`` and ``groups`` [N]."""

    x: Tensor
    labels: Tensor
    groups: Tensor

    def __getitem__(self, index: Tensor) -> Features:
        return Features(self.x[index], self.labels[index], self.groups[index])


def features_of(dataset: Dataset, classifier: nn.Module, transform: EvalTransform) -> Features:
    """What the last layer of a timm classifier sees of every image."""
    parts = []
    for rows in dataset.with_transform(transform).iter(64):
        with torch.no_grad():
            maps = classifier.timm_model.forward_features(rows["pixel_values"])
            parts.append((classifier.timm_model.forward_head(maps, pre_logits=True), rows["labels"], rows["group"]))
    return Features(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Window:
    """Whether a student is right on a share of its last four batches, mean over the classes."""

    def __init__(self, share: float) -> None:
        self.share, self.counts = share, []

    def passed(self, logits: Tensor, labels: Tensor) -> bool:
        self.counts = [*self.counts, tally(logits, labels)[0]][-4:]
        wrong_and_right = sum(self.counts)
        accuracy = (wrong_and_right[:, 1] / wrong_and_right.sum(dim=1)).nanmean()
        return len(self.counts) == 4 and bool(accuracy >= self.share)


def batches(samples: int) -> Iterator[Tensor]:
    for _ in range(EPOCHS):
        yield from torch.randperm(samples)[: samples // BATCH * BATCH].split(BATCH)


def train(train_on: Features, form: str, seed: int) -> tuple[nn.Linear, bool]:
    """The teacher, and whether the student was listened to."""
    torch.manual_seed(seed)
    student, teacher = (nn.Linear(train_on.x.shape[1], 2) for _ in range(2))
    optimisers = [torch.optim.AdamW(m.parameters(), LEARNING_RATE, weight_decay=0.01) for m in (student, teacher)]
    per_epoch = len(train_on.x) // BATCH
    steps = EPOCHS * per_epoch
    joined, began, sums = None, None, torch.zeros(2, 2, 2)
    window = Window(FIRST)
    for step, index in enumerate(batches(len(train_on.x))):
        batch = train_on[index]
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
        logits = student(batch.x)
        on_since = None if joined is None else joined + (steps - joined) / 3
        goes_on = joined is not None and on_since <= step < on_since + HEAD_START * per_epoch and began is None
        if joined is None or goes_on:
            F.cross_entropy(logits, batch.labels).backward()
            optimisers[0].step()
        if joined is None:
            if window.passed(logits.detach(), batch.labels) or step + 1 == HEAD_START * per_epoch:
                joined, window = step + 1, Window(SECOND)
            continue
        of_teacher = teacher(batch.x)
        weights = torch.ones(len(index))
        if form == "balance of classes":  # from the start, without the student
            weights = len(train_on.labels) / (2 * torch.bincount(train_on.labels)[batch.labels])
        elif began is not None and form != "plain training":
            difficulty = relative_difficulty(logits, of_teacher, batch.labels)
            values = torch.ones(len(index)) if form == "balance" else difficulty
            sums += tally(logits, batch.labels, values)
            weights = balancing_weights(logits.detach(), batch.labels, values, sums)
            if form == "relative difficulty":
                weights = difficulty / difficulty.mean()
        (weights * F.cross_entropy(of_teacher, batch.labels, reduction="none")).mean().backward()
        optimisers[1].step()
        if goes_on and window.passed(logits.detach(), batch.labels):
            began = step + 1
    return teacher, began is not None


def measure(train_on: Features, test: Features, groups: int, form: str) -> str:
    worst, average, listened = [], [], 0
    for seed in SEEDS:
        teacher, heard = train(train_on, form, seed)
        answers = teacher(test.x).argmax(dim=1).numpy()
        by_group = accuracy_by_group(answers, test.labels.numpy(), test.groups.numpy(), groups)
        worst.append(float(np.nanmin(by_group)))
        average.append(float((answers == test.labels.numpy()).mean()))
        listened += heard
    return f"{mean_and_spread(worst)} | {mean_and_spread(average)} | {listened} of {len(SEEDS)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    folder = parser.parse_args().data_dir
    torch.set_num_threads(1)
    print("| bed | form | worst group | average | student listened to |", "|---" * 5 + "|", sep="\n")
    for bed, (dataset, size) in BEDS.items():
        data = load(dataset, variant=bed, data_dir=str(folder / bed))
        weights = folder / "weights" / "mobilenetv2_100.tf2_in1k.safetensors"
        names = data["train"].features["label"].names
        classifier, processor = load_backbone(
            "mobilenetv2_100", label_names=names, image_size=size, checkpoint_path=weights
        )
        of = {split: features_of(data[split], classifier, EvalTransform(processor)) for split in data}
        both = Features(*(torch.cat([getattr(of[s], n) for s in ("validation", "test")]) for n in vars(of["test"])))
        order = torch.randperm(len(both.x), generator=torch.Generator().manual_seed(0))
        cut = round(0.7 * len(order))
        groups = data["train"].features["group"].num_classes
        for name, train_on, test in (
            (bed, of["train"], of["test"]),
            (f"{bed}, without a shortcut", both[order[:cut]], both[order[cut:]]),
        ):
            for form in FORMS:
                print(f"| {name} | {form} | {measure(train_on, test, groups, form)} |", flush=True)


if __name__ == "__main__":
    main()
