"""Two MNIST digits in one picture: a 4 or a 9 tells the label, a 0 or a 1 beside it is the shortcut."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from ule_hf.data.shortcuts import check_correlation, correlated, partners, shortcut_dataset
from ule_hf.data.small_pictures import read_mnist
from ule_hf.errors import UleError
from ule_hf.seeds import named_seed

LABELS = ("4", "9")
#: What the shortcut is called: the other digit, or for ``two`` both of them.
SHORTCUTS = {"half": ("0", "1"), "moving": ("0", "1"), "two": ("0 2", "0 3", "1 2", "1 3")}
#: Pictures of each digit; what is left is for test.
TRAIN, VALIDATION = 650, 100


def build_digit_pairs(
    data_dir: str | os.PathLike[str] | None = None, shortcut: str = "half", correlation: float = 0.95, seed: int = 0
) -> DatasetDict:
    """A 4 or a 9, beside a 0 or a 1 that mostly tells which.

    The 0 or 1 stands above (``half``), or above or below at random (``moving``), or above with a 2 or a 3 below
    (``two``), a second shortcut that agrees with the label (2 with 4) as often as the first, whether the first does or
    not. In training and validation a shortcut agrees with the label (0 with 4) in exactly ``round(correlation * n)`` of
    each class's n pictures, 650 and 100; in test every remaining 4 and 9 appears once with each shortcut (``two``: with
    each pair of them), so that a class's groups are of one size. No picture of a digit occurs in two splits; within
    one, those of the shortcuts repeat where they are fewer. The splits depend on ``seed`` alone: another correlation
    changes the shortcuts, another ``shortcut`` what stands where.

    Args:
        data_dir: a folder with `mnist/`, whose contents :func:`~ule_hf.data.small_pictures.read_mnist` describes.
        shortcut: ``half``, ``moving`` or ``two``.
        correlation: 0.5 (no shortcut) to 1.0 (no counterexample in training).

    Returns:
        ``train``, ``validation`` and ``test`` with the columns ``image`` (RGB, 28 wide, 56 high, or 84 for ``two``),
        ``label``, ``shortcut``, ``group`` and ``image_id`` (MNIST's rows, from top to bottom).

    Raises:
        UleError: another shortcut, a correlation outside [0.5, 1], files that are missing or cannot be read, or an
            MNIST with too few of a digit.
    """
    if shortcut not in SHORTCUTS:
        raise UleError(
            f"digit_pairs: the shortcut '{shortcut}' is unknown; choose one of {', '.join(SHORTCUTS)} with --shortcut"
        )
    check_correlation("digit_pairs", correlation)
    if not data_dir:
        raise UleError("digit_pairs: no data folder; name one with mnist/ in it with --data_dir")
    pictures, digits = read_mnist(Path(data_dir) / "mnist")
    rng = np.random.default_rng(named_seed(seed, "digit_pairs"))
    members = {digit: _split(rng, digits, digit) for digit in (4, 9, 0, 1, *((2, 3) if shortcut == "two" else ()))}
    arrangement = np.random.default_rng(named_seed(seed, "digit_pairs", "arrangement"))

    splits = {}
    for name in ("train", "validation", "test"):
        task = arrangement.permutation(np.concatenate([members[4][name], members[9][name]]))
        labels = (digits[task] == 9).astype(np.int64)
        swapped = arrangement.random(len(task)) < 0.5  # the same with either shortcut
        order = arrangement.permutation(len(task))
        if name == "test":
            values = np.arange(len(SHORTCUTS[shortcut]))
            task, labels, swapped = (np.tile(array, len(values)) for array in (task, labels, swapped))
            values = np.repeat(values, len(task) // len(values))
            first, second = np.divmod(values, 2) if shortcut == "two" else (values, None)
        else:
            first, second = correlated(labels, correlation), np.empty_like(labels)
            second[order] = correlated(labels[order], correlation)
        rows = [partners([members[digit][name] for digit in (0, 1)], first), task]
        if shortcut == "moving":
            rows = [np.where(swapped, *rows[::-1]), np.where(swapped, *rows)]
        if shortcut == "two":
            rows.append(partners([members[digit][name] for digit in (2, 3)], second))
        images = np.repeat(np.concatenate([pictures[part] for part in rows], axis=1)[..., None], 3, axis=3)
        ids = ["-".join([shortcut, *(f"{row:05d}" for row in stack)]) for stack in zip(*rows, strict=True)]
        shortcuts = 2 * first + second if shortcut == "two" else first
        splits[name] = shortcut_dataset(images, labels, shortcuts, LABELS, SHORTCUTS[shortcut], ids)
    return DatasetDict(splits)


def _split(rng: np.random.Generator, digits: np.ndarray, digit: int) -> dict[str, np.ndarray]:
    members = rng.permutation(np.flatnonzero(digits == digit))
    if len(members) <= TRAIN + VALIDATION:
        raise UleError(
            f"digit_pairs: MNIST has {len(members)} of the digit {digit}, and {TRAIN + VALIDATION + 1} are needed; "
            "get it whole"
        )
    train, validation, test = np.split(members, [TRAIN, TRAIN + VALIDATION])
    return {"train": train, "validation": validation, "test": test}
