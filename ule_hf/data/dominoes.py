"""Dominoes: MNIST over CIFAR-10, a simple feature over a complex one (Shah et al. 2020, arXiv 2006.07710)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from ule_hf.data.shortcuts import check_correlation, correlated, partners, shortcut_dataset
from ule_hf.data.small_pictures import CIFAR10_CLASSES, read_cifar10, read_mnist
from ule_hf.errors import UleError
from ule_hf.seeds import named_seed

#: The lower half tells the label; the digit in the upper half is the shortcut.
CLASSES = ("automobile", "truck")
SHORTCUTS = ("0", "1")
#: Share of CIFAR-10's training pictures that are validation.
HELD_OUT = 0.1


def build_dominoes(
    data_dir: str | os.PathLike[str] | None = None,
    correlation: float = 0.95,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
) -> DatasetDict:
    """Automobile or truck in the lower half, under a 0 or a 1 that mostly tells which.

    In training and validation the digit agrees with the label (0 with the first class) in exactly
    ``round(correlation * n)`` of each class's n pictures; the paper has 1.0. In test every picture appears once with
    each digit, so that the four groups are of one size. No picture and no digit occurs in two splits, and every picture
    of CIFAR-10 in one row (in test, two); digits repeat where they are fewer. The splits depend on ``seed`` alone.

    Args:
        data_dir: a folder with `mnist/` and `cifar10/`, whose contents :func:`~ule_hf.data.small_pictures.read_mnist`
            and :func:`~ule_hf.data.small_pictures.read_cifar10` describe.
        correlation: 0.5 (no shortcut) to 1.0 (no counterexample in training).
        classes: two of CIFAR-10's, by default the paper's. They are hard to tell for a network that starts from few
            pictures; automobile and horse are easier.

    Returns:
        ``train``, ``validation`` and ``test`` with the columns ``image`` (RGB, 32 wide, 64 high), ``label``,
        ``shortcut``, ``group`` and ``image_id``.

    Raises:
        UleError: a correlation outside [0.5, 1], other classes, or files that are missing or cannot be read.
    """
    check_correlation("dominoes", correlation)
    if not data_dir:
        raise UleError("dominoes: no data folder; name one with mnist/ and cifar10/ in it with --data_dir")
    if len(set(classes)) != 2 or not set(classes) <= set(CIFAR10_CLASSES):
        raise UleError(f"dominoes: classes {', '.join(classes)}; name two of {', '.join(CIFAR10_CLASSES)}")
    digits, digit_labels = read_mnist(Path(data_dir) / "mnist")
    cifar10 = read_cifar10(Path(data_dir) / "cifar10", classes)
    rng = np.random.default_rng(named_seed(seed, "dominoes"))
    rows = {split: _shuffled_rows(rng, labels) for split, (_, labels) in cifar10.items()}
    validation, train = np.split(rows["train"], [round(HELD_OUT * len(rows["train"]))])
    members = {"train": ("train", train), "validation": ("train", validation), "test": ("test", rows["test"])}
    sizes = [len(chosen) for _, chosen in members.values()]
    kinds = [_in_proportion(rng.permutation(np.flatnonzero(digit_labels == d)), sizes) for d in (0, 1)]

    splits = {}
    for number, (split, (source, chosen)) in enumerate(members.items()):
        pictures, labels = cifar10[source]
        if split == "test":
            chosen = np.tile(chosen, 2)
            shortcuts = np.repeat([0, 1], len(chosen) // 2)
        else:
            shortcuts = correlated(labels[chosen], correlation)
        upper = partners([kind[number] for kind in kinds], shortcuts)
        images = [_domino(digits[u], pictures[c]) for u, c in zip(upper, chosen, strict=True)]
        ids = [f"{u:05d}-{source}-{c:05d}" for u, c in zip(upper, chosen, strict=True)]
        splits[split] = shortcut_dataset(images, labels[chosen], shortcuts, classes, SHORTCUTS, ids)
    return DatasetDict(splits)


def _shuffled_rows(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """All rows at random, the classes in turn, so that any part has as many of each (while both last)."""
    by_class = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    ranks = np.concatenate([np.arange(len(rows)) for rows in by_class])
    return np.concatenate(by_class)[np.argsort(ranks, kind="stable")]


def _in_proportion(members: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """``members`` cut into parts in proportion to ``sizes``."""
    if len(members) < len(sizes):
        raise UleError(f"dominoes: MNIST has {len(members)} of a digit, which is fewer than splits; get it anew")
    bounds = np.cumsum(sizes)[:-1] * len(members) // sum(sizes)
    return np.split(members, np.maximum(bounds, np.arange(1, len(sizes))))


def _domino(digit: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """A digit, uint8 `[28, 28]`, framed in black to 32 × 32, over a picture, uint8 `[32, 32, 3]`."""
    upper = np.repeat(np.pad(digit, 2)[..., None], 3, axis=2)
    return np.concatenate([upper, picture])
