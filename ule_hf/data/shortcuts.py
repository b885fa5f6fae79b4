"""What the small composed datasets share: a shortcut of exact strength, and a dataset of pictures in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from ule_hf.data.groups import add_groups
from ule_hf.errors import UleError


def check_correlation(name: str, correlation: float) -> None:
    """Raises UleError outside 0.5 (no shortcut) to 1 (no counterexample in training)."""
    if not 0.5 <= correlation <= 1.0:
        raise UleError(f"{name}: correlation {correlation} is outside [0.5, 1]; 0.5 is no shortcut, 1 a perfect one")


def correlated(labels: np.ndarray, correlation: float) -> np.ndarray:
    """Shortcuts `[N]` (0 or 1) that equal the label in the first ``round(correlation * n)`` rows of each class.

    >>> correlated(np.array([0, 0, 1, 1, 1, 1]), 0.75)
    array([0, 0, 1, 1, 1, 0])
    """
    shortcuts = 1 - labels
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        shortcuts[rows[: round(correlation * len(rows))]] = label
    return shortcuts


def partners(members: Sequence[np.ndarray], shortcuts: np.ndarray) -> np.ndarray:
    """For each row one of ``members[shortcut]``, `[N]`: each as often as any other of its kind, or once more."""
    chosen = np.empty_like(shortcuts)
    for shortcut, of_kind in enumerate(members):
        rows = np.flatnonzero(shortcuts == shortcut)
        chosen[rows] = np.resize(of_kind, len(rows))
    return chosen


def shortcut_dataset(
    images: Sequence[np.ndarray],
    labels: np.ndarray,
    shortcuts: np.ndarray,
    label_names: Sequence[str],
    shortcut_names: Sequence[str],
    ids: Sequence[str],
) -> Dataset:
    """Pictures (uint8 `[H, W, 3]`) with the columns ``image``, ``label``, ``shortcut``, ``image_id`` and ``group``."""
    features = Features(
        image=Image(),
        label=ClassLabel(names=list(label_names)),
        shortcut=ClassLabel(names=list(shortcut_names)),
        image_id=Value("string"),
    )
    columns = {
        "image": [{"bytes": _png(image), "path": None} for image in images],
        "label": labels,
        "shortcut": shortcuts,
        "image_id": list(ids),
    }
    return add_groups(Dataset.from_dict(columns, features=features), ["shortcut"])


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
