"""Balanced sampling: plain training on batches in which every class, or every group, is equally likely.

Minimises 1/K Σ_k E[ℓ(f(x), y) | k] over classes or groups k, by drawing image i with probability 1 / (K n_{k(i)}),
n_k the images of k in training (Idrissi et al., *Simple data balancing achieves competitive worst-group-accuracy*,
CLeaR 2022: RWY and RWG). An epoch has as many draws as the training split has images.

Labels: the class; for groups, class and group in training.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from ule_hf.classifier_trainer import ClassifierTrainer, column
from ule_hf.seeds import named_generator
from ule_hf.task import Task


class WeightedSampler(Sampler[int]):
    """As many draws as there are images, with replacement, with probability in proportion to ``weights`` ``[N]``.

    The draws are a function of ``seed`` and epoch: every process of a distributed run makes the same, of which
    Accelerate gives each its share, and a resumed run goes on with those of an uninterrupted one.
    """

    def __init__(self, weights: ArrayLike, seed: int) -> None:
        self.weights = torch.as_tensor(np.asarray(weights), dtype=torch.float64)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[int]:
        generator = named_generator(self.seed, "sampler", self.epoch)
        # by inversion: torch.multinomial takes no more than 2**24 weights
        points = torch.rand(len(self), dtype=torch.float64, generator=generator)
        cumulated = self.weights.cumsum(0)
        drawn = torch.searchsorted(cumulated, points * cumulated[-1], right=True)
        return iter(drawn.clamp_max(len(self) - 1).tolist())


def balancing_weights(ids: ArrayLike) -> NDArray[np.float64]:
    """``[N]``: 1 / the number of images with the same id, so that every id that occurs is equally likely.

    >>> balancing_weights([0, 2, 2])
    array([1. , 0.5, 0.5])
    """
    ids = np.asarray(ids)
    return 1 / np.bincount(ids)[ids]


def class_balanced(task: Task) -> WeightedSampler:
    """Every class of the training split is equally likely."""
    return _balanced(task, "label")


def train_class_balanced(task: Task) -> ClassifierTrainer:
    """Train the initial model with every class equally likely."""
    return _train(task, class_balanced(task))


def train_group_balanced(task: Task) -> ClassifierTrainer:
    """Train the initial model with every group equally likely."""
    return _train(task, _balanced(task, "group"))


def _balanced(task: Task, ids: str) -> WeightedSampler:
    return WeightedSampler(balancing_weights(column(task.data["train"], ids)), task.args.seed)


def _train(task: Task, sampler: WeightedSampler) -> ClassifierTrainer:
    return task.train(task.trainer(ClassifierTrainer, task.classifier(), train_sampler=sampler))
