"""The two MNIST beds: a class-coloured patch in ten classes, and half of the picture with no counterexample at all.

    python -m benchmarks.mnist_beds --data_dir FOLDER   # with mnist_10k.npz: images uint8 (10000, 28, 28), labels

The figures that docs quote come from results/mnist_beds.jsonl, which this writes and resumes; `--table` prints them.
"""

from __future__ import annotations

import argparse
import io
import json
from itertools import product
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from benchmarks.runs import PLAIN, read, run_once
from ule_hf.comparison.statistics import mean_and_spread
from ule_hf.data.groups import add_groups

RESULTS = Path(__file__).parents[1] / "results" / "mnist_beds.jsonl"
COMMON = [
    *("--model", "four_layer_cnn", "--augmentation", "none", "--num_train_epochs", "12", "--learning_rate", "1e-3"),
    *("--per_device_train_batch_size", "64", "--per_device_eval_batch_size", "256", "--student_head_start", "0"),
]
PAPER = ["--preset", "paper"]
PATH = ["--preset", "path", "--grid", "8x4", "--student_loss", "cross_entropy"]
METHODS = {
    "patch": {
        "plain training": PLAIN,
        **{f"`paper`, λ {w:g}": [*PAPER, "--unlearning_weight", str(w)] for w in (0.3, 1, 3)},
        "`paper`, λ 1, control `constant`": [*PAPER, "--control", "constant"],
    },
    "half": {
        "plain training": PLAIN,
        "`paper`, λ 1": PAPER,
        "`path` with a plain student, λ 1": PATH,
        "`path` with a plain student, λ 1, `shuffled`": [*PATH, "--control", "shuffled"],
        "`path` with a plain student, λ 1, control `constant`": [*PATH, "--control", "constant"],
    },
}
SIZE = {"patch": 28, "half": 40}  # the half bed's 56 × 28 pixels squeezed into a square
SEEDS = {"patch": 1, "half": 3}

default_cfgs = generate_default_cfgs(
    {"four_layer_cnn": {"input_size": (3, 28, 28), "mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}}
)


class FourLayerCNN(nn.Module):
    """Four 3×3 convolutions (32, 64, 64, 64 channels), two max-pools, one linear layer; no BatchNorm."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, img_size: int | tuple[int, int] = 28) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width, pool in ((in_chans, 32, True), (32, 64, True), (64, 64, False), (64, 64, False)):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
        self.features = nn.Sequential(*layers, nn.Flatten())
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size  # timm records a pair
        self.head = nn.Linear(64 * (height // 4) * (width // 4), num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


@register_model
def four_layer_cnn(pretrained: bool = False, **kwargs) -> FourLayerCNN:
    """A timm architecture, so that it goes through the recipe like any other."""
    return build_model_with_cfg(FourLayerCNN, "four_layer_cnn", pretrained, **kwargs)


def patch_bed(images: np.ndarray, labels: np.ndarray, seed: int) -> DatasetDict:
    """4,000 digits of ten classes; a 5×5 corner patch in the class's colour agrees 99.5 % of the time (test: never)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    colours = np.array([[int(255 * c) for c in np.unravel_index(k + 8, (3, 3, 3))] for k in range(10)]) // 2
    splits = {}
    for split, rows in zip(("train", "validation", "test"), np.split(order[:7000], [4000, 5000]), strict=True):
        y = labels[rows]
        disagrees = rng.random(len(y)) < (1.0 if split == "test" else 0.005)
        shown = np.where(disagrees, (y + rng.integers(1, 10, len(y))) % 10, y)
        pictures = np.repeat(images[rows][..., None], 3, axis=3)
        pictures[:, :5, :5] = colours[shown][:, None, None]
        splits[split] = _dataset(pictures, y, disagrees, [str(d) for d in range(10)], ("agrees", "disagrees"))
    return DatasetDict(splits)


def half_bed(
    images: np.ndarray,
    labels: np.ndarray,
    seed: int,
    correlation: float = 1.0,
    moving: bool = False,
    second: bool = False,
) -> DatasetDict:
    """A 4 or a 9 below a 0 or a 1 that tells which, in 1,300 training images; test balanced.

    Args:
        correlation: share of training and validation images whose 0 or 1 agrees with the label; 0.5 is no shortcut.
        moving: the two digits stand in either order, at random.
        second: a 2 or a 3 below, which agrees as often and independently: a second shortcut.
    """
    rng = np.random.default_rng(seed)
    of = {digit: rng.permutation(np.flatnonzero(labels == digit)) for digit in (0, 1, 4, 9, 2, 3)}
    parts = {"train": slice(0, 650), "validation": slice(650, 750), "test": slice(750, None)}
    splits = {}
    for split, part in parts.items():
        core = np.concatenate([of[4][part], of[9][part]])
        y = np.repeat([0, 1], [len(of[4][part]), len(of[9][part])])
        if split == "test":
            core, shortcut, y = np.tile(core, 2), np.repeat([0, 1], len(y)), np.tile(y, 2)
        else:
            shortcut = np.where(rng.random(len(y)) < correlation, y, 1 - y)
        halves = [images[[rng.choice(of[s][part]) for s in shortcut]], images[core]]
        if moving:
            swapped = rng.random(len(y)) < 0.5
            halves = [np.where(swapped[:, None, None], *pair) for pair in (halves[::-1], halves)]
        names = ("0", "1")
        if second:
            other = (
                rng.integers(0, 2, len(y)) if split == "test" else np.where(rng.random(len(y)) < correlation, y, 1 - y)
            )
            halves.append(images[[rng.choice(of[2 + s][part]) for s in other]])
            shortcut, names = 2 * shortcut + other, ("0 2", "0 3", "1 2", "1 3")
        pictures = np.repeat(np.concatenate(halves, axis=1)[..., None], 3, axis=3)
        splits[split] = _dataset(pictures, y, shortcut, ["4", "9"], names)
    return DatasetDict(splits)


def _dataset(pictures: np.ndarray, labels: np.ndarray, shortcut: np.ndarray, names: list[str], values) -> Dataset:
    features = Features(
        image=Image(), label=ClassLabel(names=names), shortcut=ClassLabel(names=list(values)), image_id=Value("string")
    )
    columns = {
        "image": [{"bytes": _png(picture), "path": None} for picture in pictures],
        "label": labels.tolist(),
        "shortcut": shortcut.astype(int).tolist(),
        "image_id": [str(i) for i in range(len(labels))],
    }
    return add_groups(Dataset.from_dict(columns, features=features), ["shortcut"])


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(picture.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def disagreeing(figures: dict, bed: str) -> float:
    """Accuracy over the test images whose shortcut points to another class."""
    groups = figures["groups"]
    against = ("disagrees",) if bed == "patch" else ("4, shortcut=1", "9, shortcut=0")
    chosen = [group for name, group in groups.items() if name.endswith(against)]
    return sum(g["accuracy"] * g["size"] for g in chosen) / sum(g["size"] for g in chosen)


def table() -> str:
    rows = ["| bed | method | seeds | disagreeing, last epoch | worst group, last epoch | student, disagreeing |"]
    rows.append("|---|---|---|---|---|---|")
    lines = read(RESULTS)
    for bed, methods in METHODS.items():
        for method in methods:
            runs = [line for line in lines if line["key"]["bed"] == bed and line["key"]["method"] == method]
            last = [run["last_epoch"] for run in runs]
            cells = [
                mean_and_spread([disagreeing(figures["teacher"], bed) for figures in last]),
                mean_and_spread([figures["teacher"]["test_worst_group_accuracy"] for figures in last]),
                mean_and_spread([disagreeing(figures["student"], bed) for figures in last]),
            ]
            rows.append(f"| {bed} | {method} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "mnist")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        digits = np.load(arguments.data_dir / "mnist_10k.npz")
        build = {"patch": patch_bed, "half": half_bed}
        for bed, methods in METHODS.items():
            for seed, (method, options) in product(range(SEEDS[bed]), methods.items()):
                data = build[bed](digits["images"], digits["labels"], seed)
                size = ["--image_size", str(SIZE[bed]), "--model_args", json.dumps({"img_size": SIZE[bed]})]
                size += ["--seed", str(seed)]
                run_once(RESULTS, {"bed": bed, "method": method, "seed": seed}, data, [*COMMON, *options, *size])
    print(table())


if __name__ == "__main__":
    main()
