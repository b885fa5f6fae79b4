"""The unlearning terms: student's map and teacher's map in, one value per sample out. Pure functions.

``student_map`` and ``teacher_map`` are ``[B, N]`` from :func:`ule_hf.attribution.attribution_map`; the student's is
detached by the caller. The teacher minimises CE + λ · mean over the batch of the term. The published text names a mean
squared error between saliency maps; everything beyond that is our reading and marked so.
:func:`correlation` stands apart: scores in, one value for the batch out.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ule_hf.errors import UleError

MapTerm = Literal["inverse", "overlap", "mass", "kl"]
Control = Literal["none", "constant", "shuffled"]


def inverse(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """mean over the map of ((1 − m_s) − m_t)²: look where the student does not (our reading of the ULE paper).

    Both maps divided by their maximum. Returns ``[B]``.

    >>> inverse(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([0.])
    """
    return (1 - student_map - teacher_map).square().mean(dim=1)


def overlap(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """cos(m_s, m_t) = m_s·m_t / (‖m_s‖ ‖m_t‖), whatever the maps were divided by. Returns ``[B]``.

    Ross et al. 2018 penalise the squared cosine of input gradients; a map of absolute values has no sign to square.

    >>> overlap(torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [5.0, 5.0]]))
    tensor([0.0000, 1.0000])
    """
    return F.cosine_similarity(student_map, teacher_map, dim=1)


def mass(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Share of the teacher's map that lies where the student's is above its own mean. Returns ``[B]`` in [0, 1].

    Both maps without negative values.

    >>> mass(torch.tensor([[9.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 2.0]]))
    tensor([0.2500])
    """
    high = student_map > student_map.mean(dim=1, keepdim=True)
    total = teacher_map.sum(dim=1)
    return (teacher_map * high).sum(dim=1) / torch.where(total > 0, total, 1.0)


def kl(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """KL(q ‖ p): q is 1 − m_s and p is m_t, each divided by its sum (the ``inverse`` target as a distribution).

    The student's map divided by its maximum, both without negative values. Returns ``[B]`` in nats.

    >>> kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])).abs() < 1e-6
    tensor([True])
    """
    target = (1 - student_map).clamp_min(0)
    target = target / target.sum(dim=1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
    # a floor of 1e-3 of the mean keeps the logarithm finite where the teacher looks at nothing
    floor = 1e-3 / teacher_map.shape[1]
    share = teacher_map / teacher_map.sum(dim=1, keepdim=True).clamp_min(torch.finfo(target.dtype).eps)
    share = (share + floor) / (share + floor).sum(dim=1, keepdim=True)
    return (torch.xlogy(target, target) - target * share.log()).sum(dim=1)


def unlearning_term(student_map: Tensor, teacher_map: Tensor, term: MapTerm = "inverse") -> Tensor:
    """The term by its name; ``[B]``."""
    if term not in get_args(MapTerm):
        raise UleError(f"term {term!r} is not known; choose one of {', '.join(get_args(MapTerm))}")
    return {"inverse": inverse, "overlap": overlap, "mass": mass, "kl": kl}[term](student_map, teacher_map)


def correlation(student_scores: Tensor, teacher_scores: Tensor, labels: Tensor, control: Control = "none") -> Tensor:
    """ρ², the squared correlation of the two models' scores among images of one class: 0 where the teacher's do not
    vary with the student's. For shortcuts that fill the picture, whose map would have one cell.

    It is the squared cosine of the two models' expected gradients on the paths between images of the same class, summed
    over the whole picture: by completeness such a sum is the difference of the scores at the two ends, whatever lies
    between, so no gradient need be taken. Between images of one class it is the shortcut that differs. That a model's
    output be independent of a biased model's, given the label, is the idea of ReBias (Bahng et al. 2020), to correlate
    where the label is given that of Beutel et al. 2019.

    Args:
        student_scores, teacher_scores: ``[B]``, of each image's label; the student's detached.
        labels: ``[B]``. A class of one image says nothing.
        control: "shuffled" compares with the next image's score; with "constant" the term is 0.

    Returns:
        A scalar in [0, 1]; 0 where a model has the same score everywhere.

    >>> scores, labels = torch.tensor([1.0, 3.0, 7.0, 5.0]), torch.tensor([0, 0, 1, 1])
    >>> correlation(scores, torch.tensor([9.0, 8.0, 2.0, 3.0]), labels)
    tensor(1.)
    >>> correlation(scores, torch.tensor([9.0, 8.0, 3.0, 2.0]), labels)
    tensor(0.)
    """
    if control == "constant":
        return torch.zeros_like(student_scores).sum()
    if control == "shuffled":
        student_scores = student_scores.roll(1)
    of_student, of_teacher = (_centred(scores, labels) for scores in (student_scores, teacher_scores))
    product = (of_student * of_teacher).sum()
    return product**2 / (of_student.square().sum() * of_teacher.square().sum() + 1e-8)


def _centred(scores: Tensor, labels: Tensor) -> Tensor:
    """Each score minus the mean of its class, ``[B]``."""
    same = labels[:, None] == labels
    return scores - (same * scores).sum(dim=1) / same.sum(dim=1)  # a matrix product would be autocast to bfloat16


def apply_control(student_map: Tensor, control: Control, term: MapTerm) -> Tensor:
    """What stands in the student's place: its own map, or one that knows nothing of it.

    ``constant``: no map at all; zeros for the terms whose target is 1 − m_s (``inverse``, ``kl``), ones for those that
    multiply (``overlap``, ``mass``), where zeros would switch the term off. ``shuffled``: the map of the next sample of
    the batch. If a control does as well as ``none``, the student teaches nothing.

    >>> apply_control(torch.tensor([[0.2, 1.0]]), "constant", "inverse")
    tensor([[0., 0.]])
    >>> apply_control(torch.tensor([[0.2, 1.0], [1.0, 0.0]]), "shuffled", "overlap")
    tensor([[1.0000, 0.0000],
            [0.2000, 1.0000]])
    """
    if control == "none":
        return student_map
    if control == "shuffled":
        return student_map.roll(1, dims=0)
    if control == "constant":
        return torch.zeros_like(student_map) if term in ("inverse", "kl") else torch.ones_like(student_map)
    raise UleError(f"control {control!r} is not known; choose one of {', '.join(get_args(Control))}")
