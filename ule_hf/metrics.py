"""Accuracy by group and what is derived from it. NumPy only.

Groups are label × spurious attributes. A group without samples has no accuracy (NaN): it neither counts as the worst
group nor enters an average.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ule_hf.errors import UleError

# The figures of a table, in its order, and what they are called there.
SUMMARY = {
    "accuracy": "average",
    "train_weighted_accuracy": "average, weighted as in training",
    "worst_class_accuracy": "worst class",
    "worst_group_accuracy": "worst group",
}
#: What a benchmark has beside these, see :func:`benchmark_metrics`.
BENCHMARK_SUMMARY = {
    "average_ood_accuracy": "average, out of distribution",
    "id_accuracy": "I.D. accuracy",
    "bg_gap": "BG gap",
    "co_occur_obj_gap": "CoObj gap",
    "bg_co_occur_obj_gap": "BG+CoObj gap",
}


def group_sizes(groups: ArrayLike, num_groups: int) -> NDArray[np.int64]:
    """Samples in each group, ``[num_groups]``.

    Raises:
        UleError: a group id outside ``0 .. num_groups − 1``.

    >>> group_sizes([0, 2, 2], 4)
    array([1, 0, 2, 0])
    """
    groups = np.asarray(groups, dtype=np.int64)
    if groups.size and not (groups.min() >= 0 and groups.max() < num_groups):
        raise UleError(
            f"group ids run from {groups.min()} to {groups.max()}, but there are {num_groups} groups "
            f"(0 to {num_groups - 1}); check the column that holds them"
        )
    return np.bincount(groups, minlength=num_groups)


def accuracy_by_group(
    predictions: ArrayLike, labels: ArrayLike, groups: ArrayLike, num_groups: int
) -> NDArray[np.float64]:
    """Accuracy of each group, ``[num_groups]``; NaN where a group has no samples.

    Args:
        predictions, labels, groups: ``[N]`` ids.

    >>> accuracy_by_group([0, 1, 1], [0, 0, 1], [0, 0, 2], num_groups=3)
    array([0.5, nan, 1. ])
    """
    correct = np.asarray(predictions) == np.asarray(labels)
    sizes = group_sizes(groups, num_groups)
    hits = np.bincount(np.asarray(groups, dtype=np.int64), weights=correct, minlength=num_groups)
    return np.divide(hits, sizes, out=np.full(num_groups, np.nan), where=sizes > 0)


def train_weighted_accuracy(by_group: ArrayLike, train_sizes: ArrayLike) -> float:
    """Group accuracies weighted by the groups' share of the *training* set (Sagawa et al. 2020's average).

    Groups that are absent from the evaluated data are left out and the other weights scaled up.

    >>> train_weighted_accuracy([1.0, 0.0, np.nan], [90, 10, 5])
    0.9
    """
    by_group, weights = np.asarray(by_group, dtype=float), np.asarray(train_sizes, dtype=float)
    present = ~np.isnan(by_group)
    total = weights[present].sum()
    return float((by_group[present] * weights[present]).sum() / total) if total else float("nan")


def classification_metrics(
    predictions: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    groups: ArrayLike | None = None,
    train_group_sizes: Sequence[int] | None = None,
) -> dict[str, float]:
    """The figures this package reports for one model on one split.

    Args:
        predictions, labels: ``[N]`` class ids.
        groups: ``[N]`` group ids, where the data has them.
        train_group_sizes: samples of each group in training, given with ``groups``.

    Returns:
        ``accuracy`` and ``worst_class_accuracy``; with groups also ``worst_group_accuracy``,
        ``train_weighted_accuracy`` and ``group_<id>_accuracy`` of every group that is present.

    >>> metrics = classification_metrics([0, 0, 1, 0], [0, 0, 1, 1], 2, [0, 1, 2, 3], [5, 1, 1, 5])
    >>> metrics["accuracy"], metrics["worst_class_accuracy"], metrics["worst_group_accuracy"]
    (0.75, 0.5, 0.0)
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if not labels.size:
        raise UleError("there are no samples to evaluate; check the split")
    metrics = {
        "accuracy": float((predictions == labels).mean()),
        "worst_class_accuracy": float(np.nanmin(accuracy_by_group(predictions, labels, labels, num_classes))),
    }
    if groups is not None and train_group_sizes is not None:
        by_group = accuracy_by_group(predictions, labels, groups, len(train_group_sizes))
        metrics["worst_group_accuracy"] = float(np.nanmin(by_group))
        metrics["train_weighted_accuracy"] = train_weighted_accuracy(by_group, train_group_sizes)
        metrics |= {f"group_{g}_accuracy": float(a) for g, a in enumerate(by_group) if not np.isnan(a)}
    return metrics


def average_ood_accuracy(predictions: ArrayLike, labels: ArrayLike, environments: ArrayLike | None = None) -> float:
    """Spawrious' figure (Lynch et al. 2023): accuracy out of distribution, averaged over the test environments.

    Args:
        predictions, labels: ``[N]`` ids, of the test split only.
        environments: ``[N]`` names or ids; each counts alike. Without them the test split is one environment, which is
            what every combination of Spawrious has.

    >>> average_ood_accuracy([0, 0, 0, 1], [0, 0, 0, 0], environments=["a", "a", "a", "b"])
    0.5
    """
    correct = np.asarray(predictions) == np.asarray(labels)
    if not correct.size:
        raise UleError("there are no samples to evaluate; check the split")
    if environments is None:
        return float(correct.mean())
    environments = np.asarray(environments)
    return float(np.mean([correct[environments == name].mean() for name in np.unique(environments)]))


def shortcut_gaps(by_group: ArrayLike, correlation: float = 0.95) -> dict[str, float]:
    """UrbanCars' figures (Li et al., *A Whac-A-Mole Dilemma*, CVPR 2023): what each shortcut's absence costs.

    A shortcut is present where it agrees with the label. Accuracy in each of the four cells (background present or
    absent × co-occurring object present or absent) is averaged over the two classes. In-distribution accuracy weights
    the cells as training does, by ``correlation`` for a shortcut that is present and ``1 − correlation`` for one that
    is absent; each gap is a cell's accuracy minus that, negative where the absence harms.

    Args:
        by_group: accuracy of each of the eight groups, in the order 4 · label + 2 · background + object.
        correlation: of each shortcut with the label in training.

    Returns:
        ``id_accuracy``, ``bg_gap``, ``co_occur_obj_gap``, ``bg_co_occur_obj_gap``; NaN where a group that is needed has
        no samples.

    >>> gaps = shortcut_gaps([1, 1, 1, 0, 1, 1, 1, 1])  # urban cars without any urban shortcut fail
    >>> {name: round(value, 5) for name, value in gaps.items()}
    {'id_accuracy': 0.99875, 'bg_gap': 0.00125, 'co_occur_obj_gap': 0.00125, 'bg_co_occur_obj_gap': -0.49875}
    """
    urban, country = np.asarray(by_group, dtype=float).reshape(2, 4)
    # urban: both, background, object, neither; country: the other way round
    both, bg_only, object_only, neither = (urban + country[::-1]) / 2
    present, absent = correlation, 1 - correlation
    id_accuracy = both * present**2 + (bg_only + object_only) * present * absent + neither * absent**2
    cells = {"bg_gap": object_only, "co_occur_obj_gap": bg_only, "bg_co_occur_obj_gap": neither}
    return {"id_accuracy": float(id_accuracy)} | {name: float(cell - id_accuracy) for name, cell in cells.items()}


def benchmark_metrics(benchmark: str, accuracy: float, by_group: ArrayLike) -> dict[str, float]:
    """What the papers of ``benchmark`` report of its test split beside group accuracies.

    Args:
        benchmark: as :func:`ule_hf.data.verify.label_of` names it, such as ``urbancars 0.5``: the name, and which of
            its configurations the model was trained on.

    Returns:
        ``average_ood_accuracy`` for Spawrious, whose test split is one environment; :func:`shortcut_gaps` for
        UrbanCars, at the correlation of its training split; nothing for others.

    >>> benchmark_metrics("spawrious o2o_hard", 0.75, [])
    {'average_ood_accuracy': 0.75}
    """
    name, _, configuration = benchmark.partition(",")[0].partition(" ")
    if name == "spawrious":
        return {"average_ood_accuracy": accuracy}
    if name == "urbancars":
        return shortcut_gaps(by_group, float(configuration))
    return {}
