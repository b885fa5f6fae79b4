"""Balancing what a biased student gets wrong with what it gets right: for shortcuts that have no place of their own.

A background cannot be exchanged by a few cells, but a student that decides by it is wrong about the images that
contradict it. Learning from a biased model's errors is the idea of JTT (Liu et al. 2021) and LfF (Nam et al. 2020), and
no part of ULE; that the classes' right and wrong images weigh alike, as groups do in group-balanced training, is
ours. Torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ule_hf.unlearning import Control


def count_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each class, how many images the student gets wrong and how many right: ``[B, K]``, ``[B]`` → ``[K, 2]``.

    >>> count_answers(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1]))
    tensor([[0., 1.],
            [1., 1.]])
    """
    counts = torch.zeros(logits.shape[1], 2, device=logits.device)
    right = (logits.argmax(dim=1) == labels).long()
    return counts.index_put_((labels, right), torch.ones_like(labels, dtype=counts.dtype), accumulate=True)


def balancing_weights(logits: Tensor, labels: Tensor, counts: Tensor, control: Control = "none") -> Tensor:
    """One weight for each image, so that the images of each class that the student gets wrong, and those that it gets
    right, have the same total over the data; their mean over the data is 1.

    Args:
        logits: the student's, ``[B, K]``.
        labels: ``[B]``.
        counts: ``[K, 2]`` of :func:`count_answers`, these images among them.
        control: "constant" weighs all alike, "shuffled" gives each image the next one's weight.

    Returns:
        ``[B]``.

    >>> logits, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1, 1])
    >>> balancing_weights(logits, labels, count_answers(logits, labels))
    tensor([0.6667, 0.6667, 1.3333, 1.3333])
    """
    if control == "constant":
        return torch.ones(len(labels), device=labels.device)
    right = (logits.argmax(dim=1) == labels).long()
    weights = counts.sum() / ((counts > 0).sum() * counts[labels, right])
    return weights.roll(-1) if control == "shuffled" else weights
