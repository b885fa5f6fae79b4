"""EIIL: environment inference for invariant learning.

A reference model is trained plainly for a few epochs. Each training image then gets the environment that makes the
reference break invariance most: q maximises IRMv1's penalty Σ_e (∂/∂s|_{s=1} 1/N Σ_i q_i(e) ℓ(s f(x_i), y_i))²
(Creager, Jacobsen, Zemel, *Environment inference for invariant learning*, ICML 2021). With two environments the
maximum is known: the derivative of an image's loss is d_i = Σ_k (p_k − 1[k = y_i]) f_k(x_i), and A² + B² with A + B =
Σ_i d_i fixed is largest when one environment holds every d_i > 0. So no ascent is needed, where the authors take
gradient steps in q. The second model, from the initial weights, is trained by Group DRO on class × environment.

Labels: the class.
"""

from __future__ import annotations

import logging

import numpy as np
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray
from scipy.special import softmax

from ule_hf.baselines.group_dro import train_on_groups
from ule_hf.classifier_trainer import ClassifierTrainer, column
from ule_hf.data.groups import group_ids, group_names
from ule_hf.task import Task

logger = logging.getLogger(__name__)

ENVIRONMENTS = {"environment": ("agrees", "disagrees")}


def scale_derivatives(logits: NDArray, labels: NDArray) -> NDArray:
    """∂ℓ(s f(x), y)/∂s at s = 1, ``[N]``, for logits f(x) ``[N, K]``.

    >>> scale_derivatives(np.array([[1.0, -1.0]]), np.array([0])).round(4)
    array([-0.2384])
    """
    logits = logits.astype(np.float64)
    return (softmax(logits, axis=1) * logits).sum(axis=1) - logits[np.arange(len(labels)), labels]


def infer_environments(logits: NDArray, labels: NDArray) -> NDArray[np.int64]:
    """Environment of each image, 0 or 1, ``[N]``: 1 where a bolder reference would be the worse one."""
    return (scale_derivatives(logits, labels) > 0).astype(np.int64)


def train(task: Task) -> ClassifierTrainer:
    """Infer environments, then train against the worst of class × environment."""
    options = task.method_args
    first = task.first_stage(num_train_epochs=options.eiil_first_epochs, load_best_model_at_end=False)
    environments = infer_environments(*task.training_logits(first))
    if environments.min() == environments.max():
        logger.warning(
            "eiil: after %g epochs the reference model has one environment only, so Group DRO balances the classes; "
            "lower --eiil_first_epochs",
            options.eiil_first_epochs,
        )
    return train_on_groups(task, _with_environments(task.data["train"], environments))


def _with_environments(train: Dataset, environments: NDArray[np.int64]) -> Dataset:
    labels = train.features["label"].names
    ids = group_ids(column(train, "label"), {"environment": environments}, labels, ENVIRONMENTS)
    feature = ClassLabel(names=group_names(labels, ENVIRONMENTS))
    return train.remove_columns("group").add_column("group", ids, feature=feature)
