"""Balancing what a biased student gets wrong with what it gets right: for shortcuts that have no place of their own.

A background cannot be exchanged by a few cells, but a student that decides by it is wrong about the images that
contradict it. Learning from a biased model's errors is the idea of JTT (Liu et al. 2021) and LfF (Nam et al. 2020), and
no part of ULE, whose term beside these weights is :func:`ule_hf.unlearning.correlation`; :func:`relative_difficulty` is
LfF's. That the right and the wrong images of each class weigh alike, as groups do in group-balanced training, is ours.
Torch only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ule_hf.unlearning import Control


def relative_difficulty(biased_losses: Tensor, debiased_losses: Tensor) -> Tensor:
    """W = ℓ_B / (ℓ_B + ℓ_D), in [0, 1] and of the losses' shape; 0 where both are (Nam et al. 2020).

    >>> relative_difficulty(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor([0.7500, 0.0000])
    """
    return biased_losses / (biased_losses + debiased_losses + 1e-8)


def difficulty_for_the_student(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """The relative difficulty of the images of a batch, ``[B]``, without gradient: near 1 where the student is misled
    and the teacher is not, near 0 where it is the other way round, a half where both are sure.

    To both losses that of a guess, ln K, is added: the ratio of two small losses is noise, and lost a teacher that had
    learned its training images, wrongly labelled ones above all (`benchmarks/frozen_features.py`). Of this batch alone;
    LfF itself (:mod:`ule_hf.baselines.lff`) takes averages over the epochs, scaled by class.

    >>> logits, labels = torch.tensor([[0.0, 9.0], [9.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 0, 0])
    >>> difficulty_for_the_student(logits, torch.tensor([[9.0, 0.0]]).expand(3, 2), labels)
    tensor([0.9333, 0.5000, 0.6666])
    """
    guess = math.log(student_logits.shape[1])
    return relative_difficulty(
        *(
            F.cross_entropy(logits.detach().float(), labels, reduction="none") + guess
            for logits in (student_logits, teacher_logits)
        )
    )


def tally(logits: Tensor, labels: Tensor, values: Tensor | None = None) -> Tensor:
    """Of each class, the images that the student gets wrong and right: ``[2, K, 2]``, their number and the sum of
    ``values``, by default ones.

    Args:
        logits: the student's, ``[B, K]``.
        labels, values: ``[B]``.

    >>> tally(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1]))[0]
    tensor([[0., 1.],
            [1., 1.]])
    """
    ones = torch.ones(len(labels), device=labels.device)
    right = (logits.argmax(dim=1) == labels).long()
    sums = torch.zeros(2, logits.shape[1], 2, device=labels.device)
    for sum_, added in zip(sums, (ones, ones if values is None else values), strict=True):
        sum_.index_put_((labels, right), added, accumulate=True)
    return sums


def balancing_weights(
    logits: Tensor, labels: Tensor, values: Tensor, so_far: Tensor, control: Control = "none"
) -> Tensor:
    """One weight for each image: in proportion to ``values`` among the images of its class that the student gets right,
    or wrong, as it does this one; over the data all these sets have the same total, and the mean is 1.

    Args:
        logits: the student's, ``[B, K]``.
        labels, values: ``[B]``.
        so_far: ``[2, K, 2]`` of :func:`tally`, these images among them.
        control: "constant" weighs all alike, "shuffled" gives each image the next one's weight.

    Returns:
        ``[B]``.

    >>> logits, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1, 1])
    >>> values = torch.tensor([0.1, 0.3, 0.9, 0.2])
    >>> balancing_weights(logits, labels, values, tally(logits, labels, values))
    tensor([0.3333, 1.0000, 1.3333, 1.3333])
    """
    if control == "constant":
        return torch.ones(len(labels), device=labels.device)
    right = (logits.argmax(dim=1) == labels).long()
    images, sums = so_far
    weights = values * images.sum() / ((images > 0).sum() * sums[labels, right])
    return weights.roll(-1) if control == "shuffled" else weights
