"""Empirical risk minimisation: plain training, what every other method is measured against.

Minimises 1/N Σ_i ℓ(f(x_i), y_i), ℓ the cross-entropy (Vapnik, *Principles of risk minimization for learning theory*,
1991).

Labels: the class.
"""

from __future__ import annotations

from ule_hf.classifier_trainer import ClassifierTrainer
from ule_hf.task import Task


def train(task: Task) -> ClassifierTrainer:
    """Train the initial model plainly."""
    return task.train(task.trainer(ClassifierTrainer, task.classifier()))
