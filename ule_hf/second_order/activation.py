"""Activations whose double backward takes no pass that it does not need.

* Piecewise linear (ReLU, ReLU6, hardtanh): the second derivative is zero. PyTorch writes that zero out as a tensor and
  adds it to the gradient in every layer; here there is none.
* GELU, ``f(x) = x Φ(x)``: ``f''(x) = (2 − x²) φ(x)`` with φ the normal density, in five passes.
"""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)
aten = torch.ops.aten


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``F.relu`` with a cheap double backward; any shape."""
    return hardtanh(input, 0.0, math.inf, inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """``F.relu6`` with a cheap double backward; any shape."""
    return hardtanh(input, 0.0, 6.0, inplace)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """``F.hardtanh`` with a cheap double backward; any shape."""
    if not (torch.is_grad_enabled() and input.requires_grad):
        return F.hardtanh(input, min_val, max_val, inplace)
    if inplace and input._is_view():
        logger.debug("hardtanh: no rule for a view that is changed in place, %s", tuple(input.shape))
        return F.hardtanh(input, min_val, max_val, inplace)
    return _Clamp.apply(input, min_val, max_val, inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``F.gelu`` with a cheap double backward of the exact form; any shape."""
    if not (torch.is_grad_enabled() and input.requires_grad):
        return F.gelu(input, approximate=approximate)
    if approximate != "none":
        logger.debug("gelu: no rule for approximate=%r", approximate)
        return F.gelu(input, approximate=approximate)
    return _Gelu.apply(input)


class _Clamp(Function):
    """x → y; ``y`` alone tells where the derivative is one, so an activation in place keeps no copy of ``x``."""

    @staticmethod
    def forward(ctx, x, low, high, inplace):
        if inplace:
            ctx.mark_dirty(x)
        y = F.hardtanh(x, low, high, inplace)
        ctx.save_for_backward(y)
        ctx.limits = low, high
        return y

    @staticmethod
    def backward(ctx, g):
        return _Mask.apply(g, ctx.saved_tensors[0].detach(), *ctx.limits), None, None, None


class _Mask(Function):
    """g → g where ``low < y < high``, else 0; linear in g, so it is its own derivative."""

    @staticmethod
    def forward(ctx, g, y, low, high):
        ctx.save_for_backward(y)
        ctx.limits = low, high
        return aten.hardtanh_backward(g, y, low, high)

    @staticmethod
    def backward(ctx, G):
        return _Mask.apply(G, *ctx.saved_tensors, *ctx.limits), None, None, None


class _Gelu(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx, g):
        return _GeluBackward.apply(g, *ctx.saved_tensors)


class _GeluBackward(Function):
    """(g, x) → g f'(x)."""

    @staticmethod
    def forward(ctx, g, x):
        ctx.save_for_backward(g, x)
        return aten.gelu_backward(g, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, G):
        g, x = ctx.saved_tensors
        square = x * x
        dx = (square * -0.5).exp_().mul_(square.sub_(2)).mul_(g).mul_(G).mul_(-1 / math.sqrt(2 * math.pi))
        return aten.gelu_backward(G, x), dx
