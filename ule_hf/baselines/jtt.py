"""JTT: just train twice.

A first model is trained plainly for T epochs; E are the training images that it gets wrong. The second, from the
initial weights, minimises λ Σ_{i ∈ E} ℓ(f(x_i), y_i) + Σ_{i ∉ E} ℓ(f(x_i), y_i) (Liu et al., *Just train twice:
improving group robustness without training group information*, ICML 2021): images of E are drawn λ times as often as
others. An epoch keeps its number of draws here; the authors repeat the images of E instead, which makes epochs longer
with λ.

Labels: the class. The paper chooses T, λ and the epoch by the worst *group* of validation.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from ule_hf.baselines.sampling import WeightedSampler
from ule_hf.classifier_trainer import ClassifierTrainer
from ule_hf.task import Task

logger = logging.getLogger(__name__)


def upweighted_errors(logits: NDArray, labels: NDArray, upweight: float) -> NDArray[np.float64]:
    """``[N]``: λ where the largest of the logits ``[N, K]`` is not the label's, else 1.

    >>> upweighted_errors(np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([0, 1]), upweight=20)
    array([ 1., 20.])
    """
    return np.where(logits.argmax(axis=1) != labels, float(upweight), 1.0)


def train(task: Task) -> ClassifierTrainer:
    """Train twice; the first model stays in ``first_stage/``."""
    options = task.method_args
    first = task.first_stage(num_train_epochs=options.jtt_first_epochs, load_best_model_at_end=False)
    logits, labels = task.training_logits(first)
    weights = upweighted_errors(logits, labels, options.jtt_upweight)
    if (weights == 1).all():
        logger.warning(
            "jtt: after %g epochs the first model gets every training image right, so the second is trained plainly; "
            "lower --jtt_first_epochs",
            options.jtt_first_epochs,
        )
    sampler = WeightedSampler(weights, task.args.seed)
    return task.train(task.trainer(ClassifierTrainer, task.classifier(), train_sampler=sampler))
