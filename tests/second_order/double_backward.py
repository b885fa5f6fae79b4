"""A small step whose loss contains an input gradient, to compare the rules with PyTorch's own double backward."""

from __future__ import annotations

import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def plain_double_backward():
    """PyTorch's own double backward; the only thing it needs is an attention that has one."""
    return sdpa_kernel(SDPBackend.MATH)


def step(model, images, context, autocast=None):
    """Loss, saliency and parameter gradients (None for a frozen parameter) of one step in ``context``."""
    model.zero_grad()
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    lowered = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
    with context(), lowered:
        scores = model(images)
    (saliency,) = torch.autograd.grad(scores.float().max(1).values.sum(), images, create_graph=True)
    weights = torch.linspace(-1, 1, saliency.numel(), dtype=saliency.dtype).view_as(saliency)
    loss = scores.square().mean() + (saliency * weights).sum() + saliency.square().sum()
    loss.backward()
    return [loss.detach(), saliency.detach(), images.grad, *(p.grad for p in model.parameters())]


def relative_error(found, expected):
    """The norm of the difference over the norm, all tensors of a step taken together."""
    found, expected = (torch.cat([t.double().flatten() for t in side if t is not None]) for side in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def worst_relative_error(found, expected):
    """The same for each tensor on its own, and the largest of them.

    A gradient that is zero but for rounding (a bias in front of a batch norm) is measured against the largest one.
    """
    assert [f is None for f in found] == [e is None for e in expected]
    pairs = [(f, e) for f, e in zip(found, expected, strict=True) if e is not None]
    largest = max(e.norm() for _, e in pairs)
    return max(((f - e).norm() / e.norm().clamp(min=1e-3 * largest)).item() for f, e in pairs)
