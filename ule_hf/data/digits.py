"""Handwritten digits with a shortcut of known strength: the embedded dataset, built in memory without a download."""

from __future__ import annotations

import numpy as np
from datasets import DatasetDict
from PIL import Image as PILImage
from sklearn.datasets import load_digits

from ule_hf.data.shortcuts import check_correlation, correlated, partners, shortcut_dataset
from ule_hf.errors import UleError
from ule_hf.seeds import named_seed

LABELS = ("even", "odd")
#: What the shortcut is called: the patch's colour, or the digit in the upper half.
SHORTCUTS = {"patch": ("orange", "blue"), "half": ("0", "1")}

_COLOURS = np.array([[255, 128, 0], [0, 128, 255]], dtype=np.uint8)
_PATCH_PIXELS = 6
#: Pictures of each of the ten digits for validation, and as many for test: a fifth of the rarest digit's 174.
_HELD_OUT = 34


def build_digits(kind: str = "patch", correlation: float = 0.95, seed: int = 0) -> DatasetDict:
    """Even against odd digits, in scikit-learn's 1,797 pictures, with a shortcut that mostly tells the answer.

    The shortcut is a corner patch in one of two colours (``patch``: all ten digits), or the digit 0 or 1 in the upper
    half of the picture (``half``: the digits 2 to 9 fill the lower half). In training and validation it agrees with
    the label in exactly ``round(correlation * n)`` of each class's n pictures; in test every picture appears once with
    each shortcut, so that the four groups are of one size. No picture, nor upper half, occurs in two splits. The
    splits depend on ``seed`` alone: another correlation changes the shortcuts and nothing else.

    Args:
        kind: ``patch`` or ``half``.
        correlation: 0.5 (no shortcut) to 1.0 (no counterexample in training).

    Returns:
        ``train``, ``validation`` and ``test`` with the columns ``image`` (RGB, 32 × 32), ``label``, ``shortcut``,
        ``group`` and ``image_id``.

    Raises:
        UleError: another kind, or a correlation outside [0.5, 1].
    """
    if kind not in SHORTCUTS:
        raise UleError(f"digits: the shortcut '{kind}' is unknown; choose one of {', '.join(SHORTCUTS)}")
    check_correlation("digits", correlation)
    pictures, digits = load_digits(return_X_y=True)
    pictures = (pictures.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rng = np.random.default_rng(named_seed(seed, "digits", kind))
    members = [_split(rng.permutation(np.flatnonzero(digits == digit))) for digit in range(10)]

    splits = {}
    for name in ("train", "validation", "test"):
        # for `half` the digits 0 and 1 are the shortcut, the others the task
        task = np.concatenate([split[name] for split in members[2 if kind == "half" else 0 :]])
        task = rng.permutation(task)
        labels = digits[task] % 2
        if name == "test":
            task, labels = np.tile(task, 2), np.tile(labels, 2)
            shortcuts = np.repeat([0, 1], len(task) // 2)
        else:
            shortcuts = correlated(labels, correlation)
        if kind == "patch":
            images = [_with_patch(pictures[t], _COLOURS[s]) for t, s in zip(task, shortcuts, strict=True)]
            ids = [f"patch-{t:04d}-{SHORTCUTS['patch'][s]}" for t, s in zip(task, shortcuts, strict=True)]
        else:
            upper = partners([members[s][name] for s in (0, 1)], shortcuts)
            images = [_stacked(pictures[u], pictures[t]) for u, t in zip(upper, task, strict=True)]
            ids = [f"half-{u:04d}-{t:04d}" for u, t in zip(upper, task, strict=True)]
        splits[name] = shortcut_dataset(images, labels, shortcuts, LABELS, SHORTCUTS[kind], ids)
    return DatasetDict(splits)


def _split(members: np.ndarray) -> dict[str, np.ndarray]:
    test, validation, train = np.split(members, [_HELD_OUT, 2 * _HELD_OUT])
    return {"train": train, "validation": validation, "test": test}


def _with_patch(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    image = np.repeat(_framed(picture, digit=(26, 26), frame=(32, 32))[..., None], 3, axis=2)
    image[:_PATCH_PIXELS, :_PATCH_PIXELS] = colour
    return image


def _stacked(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    halves = [_framed(picture, digit=(14, 20), frame=(16, 32)) for picture in (upper, lower)]
    return np.repeat(np.concatenate(halves)[..., None], 3, axis=2)


def _framed(picture: np.ndarray, digit: tuple[int, int], frame: tuple[int, int]) -> np.ndarray:
    """An 8 × 8 picture, enlarged to the height and width ``digit``, in the middle of a black frame."""
    enlarged = np.asarray(PILImage.fromarray(picture).resize(digit[::-1], PILImage.Resampling.BICUBIC))
    margins = [((outer - inner) // 2,) * 2 for outer, inner in zip(frame, digit, strict=True)]
    return np.pad(enlarged, margins)
