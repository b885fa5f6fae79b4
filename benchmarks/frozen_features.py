"""What is to be done about a shortcut that has no place, tried on frozen features: two linear models, a second a run.

    python -m benchmarks.frozen_features --data_dir FOLDER  # waterbirds50/, urbancars_like/, weights/; prints the table

As preset `auto` where the exchange does not turn the student: it comes to 90 %, trains for as long again and is frozen,
the teacher is trained plainly through a twelfth of its training, and then weights and term begin and the student trains
on; a student that did not come to 90 % in its first epoch is not listened to. The balance of classes alone stands
beside, because every other balance is one of classes too, and the balance of the true groups, for which labels are
needed. Without a shortcut means: trained on 70 % of validation and test, which are balanced, and tested on the rest.
Several learning rates and lengths, because what is on by default must do no harm at any.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from benchmarks.runs import ROOT
from ule_hf.attribution import log_odds
from ule_hf.backbones import load_backbone
from ule_hf.balancing import balancing_weights, difficulty_for_the_student, relative_difficulty, tally
from ule_hf.comparison.statistics import mean_and_spread
from ule_hf.data import load
from ule_hf.data.transforms import EvalTransform
from ule_hf.metrics import accuracy_by_group
from ule_hf.pair import generalised_cross_entropy
from ule_hf.trainer import STUDENT_IS_ASKED
from ule_hf.unlearning import correlation

BEDS = {"waterbirds50": ("waterbirds", 160), "urbancars_like": ("urbancars", 144)}
SEEDS, BATCH, LEARNED, HEAD_START = range(4), 32, 0.9, 2  # the student's accuracy; epochs at most
BUDGETS = ((1e-3, 8), (1e-2, 8), (1e-3, 24))  # learning rate, epochs
WRONG = 0.05

of_each = partial(F.cross_entropy, reduction="none")


def ones(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return torch.ones(len(labels))


@dataclass
class Form:
    """What becomes of the student's errors, ``values(student's, teacher's logits, labels)`` for each image, and λ."""

    values: Callable[[Tensor, Tensor, Tensor], Tensor] = difficulty_for_the_student
    correlation_weight: float = 0.3
    balanced: bool = True
    frozen: bool = False
    clipped: bool = False
    shuffled: bool = False


FORMS = {
    "plain training": None,
    "balance of classes": None,
    "balance of groups, with their labels": None,
    "balance": Form(ones, correlation_weight=0),
    "balance of relative difficulty": Form(correlation_weight=0),
    "correlation": Form(ones, balanced=False),
    "both": Form(),  # preset `auto`
    "both, another image's": Form(shuffled=True),  # control `shuffled`
    "both, λ = 0.1": Form(correlation_weight=0.1),
    "both, λ = 1": Form(correlation_weight=1),
    "both, gradients clipped at 1": Form(clipped=True),  # `TrainingArguments`' default
    "both, the student frozen": Form(frozen=True),
    "both, small losses as they are": Form(
        lambda student, teacher, labels: relative_difficulty(*(of_each(x.detach(), labels) for x in (student, teacher)))
    ),
}


# those that are also tried on wrong labels and without a shortcut
GUARDED = ("plain training", "balance of classes", "balance of relative difficulty", "both", "both, λ = 1")
OF_SETS = {"balance of classes": "labels", "balance of groups, with their labels": "groups"}


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


def mislabelled(features: Features) -> Features:
    """Some labels turned round, of two classes; the groups are as they were, and not looked at in training."""
    wrong = torch.rand(len(features.labels), generator=torch.Generator().manual_seed(0)) < WRONG
    return Features(features.x, torch.where(wrong, 1 - features.labels, features.labels), features.groups)


def batches(samples: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(samples)[: samples // BATCH * BATCH].split(BATCH)


def train(train_on: Features, name: str, learning_rate: float, epochs: int, seed: int) -> tuple[nn.Linear, bool]:
    """The teacher, and whether the student was listened to."""
    torch.manual_seed(seed)
    form = FORMS[name]
    student, teacher = (nn.Linear(train_on.x.shape[1], 2) for _ in range(2))
    optimisers = [torch.optim.AdamW(m.parameters(), learning_rate, weight_decay=0.01) for m in (student, teacher)]
    per_epoch = len(train_on.x) // BATCH
    steps = epochs * per_epoch
    joins, listens, last_four, sums = HEAD_START * per_epoch, False, [], torch.zeros(2, 2, 2)
    for step, index in enumerate(batches(len(train_on.x), epochs)):
        batch = train_on[index]
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
        logits = student(batch.x)
        student_answers = logits.detach()
        if step < joins:
            F.cross_entropy(logits, batch.labels).backward()
            optimisers[0].step()
            last_four = [*last_four, tally(student_answers, batch.labels)[0]][-4:]
            counts = sum(last_four)
            learned = len(last_four) == 4 and (counts[:, 1] / counts.sum(dim=1)).nanmean() >= LEARNED
            if learned and joins == HEAD_START * per_epoch:
                joins, listens = min(2 * step + 1, joins), step < per_epoch
            continue
        of_teacher = teacher(batch.x)
        weights = torch.ones(len(index))
        term = torch.zeros(())
        if name in OF_SETS:  # from the start, without the student
            sets = getattr(train_on, OF_SETS[name])
            sizes = torch.bincount(sets)
            weights = len(sets) / ((sizes > 0).sum() * sizes[getattr(batch, OF_SETS[name])])
        elif form and listens and step >= joins + (steps - joins) * STUDENT_IS_ASKED[1]:
            control = "shuffled" if form.shuffled else "none"
            values = form.values(student_answers, of_teacher, batch.labels)
            sums += tally(student_answers, batch.labels, values)
            if form.balanced:
                weights = balancing_weights(student_answers, batch.labels, values, sums, control)
            else:
                weights = values / values.mean()
            scores = (log_odds(x, batch.labels) for x in (student_answers, of_teacher))
            term = form.correlation_weight * correlation(*scores, batch.labels, control)
            if not form.frozen:
                generalised_cross_entropy(logits, batch.labels).backward()
                optimisers[0].step()
        ((weights * of_each(of_teacher, batch.labels)).mean() + term).backward()
        if form and form.clipped:
            nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimisers[1].step()
    return teacher, listens


def measure(train_on: Features, test: Features, groups: int, name: str, learning_rate: float, epochs: int) -> str:
    worst, average, listened = [], [], 0
    for seed in SEEDS:
        teacher, heard = train(train_on, name, learning_rate, epochs, seed)
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
    print("| bed | rate, epochs | form | worst group | average | student listened to |", "|---" * 6 + "|", sep="\n")
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
        for name, train_on, test, forms in (
            (bed, of["train"], of["test"], FORMS),
            (f"{bed}, {100 * WRONG:.0f} % of labels wrong", mislabelled(of["train"]), of["test"], GUARDED),
            (f"{bed}, without a shortcut", both[order[:cut]], both[order[cut:]], GUARDED),
        ):
            for budget, form in product(BUDGETS, forms):
                found = measure(train_on, test, groups, form, *budget)
                print(f"| {name} | {budget[0]:g}, {budget[1]} | {form} | {found} |", flush=True)


if __name__ == "__main__":
    main()
