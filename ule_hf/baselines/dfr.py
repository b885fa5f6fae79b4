"""DFR: deep feature reweighting, with validation as the data that reweights.

A model is trained plainly; then its last layer alone is fitted anew, by logistic regression with an L1 penalty on the
frozen features of the *validation* split, on subsets in which every group has as many images as the smallest: Σ_i
ℓ(w·z_i + b, y_i) + ‖w‖₁ / C, z the features without their mean, divided by their standard deviation. C is the one
with the best worst group when a half of validation is fitted and the other tested; weights are averaged over several
subsets (Kirichenko, Izmailov, Wilson, *Last layer re-training is sufficient for robustness to spurious correlations*,
ICLR 2023). With more than two classes each is told from all others.

Labels: the class in training, class and group in validation. So the figures of validation are those of data fitted
to.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from ule_hf.baselines.last_layer import head_inputs, linear_head, ship
from ule_hf.classifier_trainer import ClassifierTrainer, column
from ule_hf.errors import UleError
from ule_hf.metrics import accuracy_by_group
from ule_hf.seeds import named_seed
from ule_hf.task import Task

logger = logging.getLogger(__name__)

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # C
# scikit-learn says it in another way from 1.8 on
L1_PENALTY = {"penalty": "l1"} if LogisticRegression().get_params().get("l1_ratio") is None else {"l1_ratio": 1.0}


def balanced_subset(groups: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of a random subset in which every group that occurs has as many as the smallest.

    >>> groups = np.array([0, 0, 0, 1, 2, 2])
    >>> np.bincount(groups[balanced_subset(groups, np.random.default_rng(0))]).tolist()
    [1, 1, 1]
    """
    of_group = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    size = min(len(rows) for rows in of_group)
    return np.concatenate([rng.choice(rows, size, replace=False) for rows in of_group])


def reweighted_head(
    features: NDArray, labels: NDArray, groups: NDArray, num_classes: int, subsets: int, seed: int
) -> tuple[NDArray, NDArray]:
    """Weight ``[K, D]`` and bias ``[K]`` for features ``[N, D]``.

    Raises:
        UleError: a group with one image only, which cannot be both fitted and tested.
    """
    rng = np.random.default_rng(named_seed(seed, "dfr"))
    sizes = np.bincount(groups)
    if (sizes == 1).any():
        raise UleError(
            f"dfr: group {np.flatnonzero(sizes == 1)[0]} has one image in validation, and two are needed (one to fit, "
            "one to choose the penalty by); add some to the validation split"
        )
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    fitted, tested = train_test_split(
        np.arange(len(labels)), test_size=0.5, stratify=groups, random_state=rng.integers(2**31)
    )
    subset = fitted[balanced_subset(groups[fitted], rng)]

    def worst_group(strength: float) -> float:
        weight, bias = _fit(scaled[subset], labels[subset], num_classes, strength)
        predictions = (scaled[tested] @ weight.T + bias).argmax(axis=1)
        return np.nanmin(accuracy_by_group(predictions, labels[tested], groups[tested], len(sizes)))

    best = max(STRENGTHS, key=worst_group)
    drawn = (balanced_subset(groups, rng) for _ in range(subsets))
    heads = [_fit(scaled[rows], labels[rows], num_classes, best) for rows in drawn]
    weight, bias = (np.mean(parts, axis=0) for parts in zip(*heads, strict=True))
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def _fit(features: NDArray, labels: NDArray, num_classes: int, strength: float) -> tuple[NDArray, NDArray]:
    """One regression as weight ``[K, D]`` and bias ``[K]`` of logits."""
    regression = LogisticRegression(C=strength, solver="liblinear", random_state=0, **L1_PENALTY)
    if num_classes == 2:
        regression.fit(features, labels)
        # the log-odds of class 1 are the difference of two logits
        half = np.array([[-0.5], [0.5]])
        return half @ regression.coef_, half[:, 0] * regression.intercept_
    each = OneVsRestClassifier(regression).fit(features, labels).estimators_
    return np.concatenate([e.coef_ for e in each]), np.concatenate([e.intercept_ for e in each])


def train(task: Task) -> ClassifierTrainer:
    """Train plainly, in ``first_stage/``, then fit the last layer to validation."""
    linear_head(task.classifier())  # refused before anything is trained
    validation = task.data["validation"]
    labels, groups = column(validation, "label"), column(validation, "group")
    absent = set(range(validation.features["group"].num_classes)) - set(groups.tolist())
    if absent:
        names = validation.features["group"].names
        logger.warning("dfr: validation has no image of %s; the others are balanced", names[min(absent)])
    first = task.first_stage()
    features = head_inputs(first, task.for_evaluation(validation))
    options = task.method_args
    head = reweighted_head(features, labels, groups, len(task.labels), options.dfr_subsets, task.args.seed)
    return ship(task, first, *head)
