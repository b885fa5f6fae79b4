"""Batch normalisation whose double backward is a few sums per channel and about three passes over the activation.

With ``x̂ = (x − mean) r``, ``r = (var + eps)^−½``, ``m(·)`` the mean over batch and space of one channel, ``g`` the
gradient of ``y = w x̂ + b``, the backward (Ioffe and Szegedy, 2015) is

    gx = w r (g − m(g) − x̂ m(g x̂)),        gw = Σ g x̂,        gb = Σ g.

Let ``G`` be the gradient that arrives at ``gx``, and ``s = m(G g) − m(G) m(g) − m(G x̂) m(g x̂)``, so that
``Σ G gx = n w r s`` for the n values of a channel. Its derivatives are

    dg = w r (G − m(G) − x̂ m(G x̂))                                              (the backward again, on G)
    dw = n r s
    dx = −w r² [ m(g x̂) (G − m(G)) + m(G x̂) (g − m(g)) + x̂ (s − 2 m(g x̂) m(G x̂)) ].

``m(g)`` and ``m(g x̂)`` are known from ``gb`` and ``gw``, and ``m(G)`` and ``m(G x̂)`` come with ``dg``. PyTorch
composes the same from some thirty full-size kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` with a cheap double backward.

    Args:
        input: ``[B, C, *spatial]``.
        running_mean, running_var, weight, bias: ``[C]`` or None. The running statistics are updated in training.
    """
    one_value = input.numel() == input.shape[1]  # PyTorch refuses it, in its words
    if not (torch.is_grad_enabled() and input.requires_grad) or one_value:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if training:
        return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    # With fixed statistics it is an affine map, and PyTorch's double backward of a product is cheap.
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return torch.addcmul(_per_channel(shift, input), input, _per_channel(scale, input)).to(input.dtype)


class _BatchNorm(Function):
    """(x, weight, bias) → y, in training mode."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps):
        y, mean, rstd = aten.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx, g):
        gx, gw, gb = _BatchNormBackward.apply(g, *ctx.saved_tensors)
        has_weight, has_bias = ctx.needs_input_grad[1:3]
        return gx, gw if has_weight else None, gb if has_bias else None, None, None, None, None


class _BatchNormBackward(Function):
    """(g, x, weight) → gx, gw, gb; the gradients of the parameters are a by-product of ``gx``."""

    @staticmethod
    def forward(ctx, g, x, weight, mean, rstd):
        gx, gw, gb = _backward(g, x, weight, mean, rstd)
        ctx.save_for_backward(g, x, weight, mean, rstd, gw, gb)
        ctx.set_materialize_grads(False)
        return gx, gw, gb

    @staticmethod
    @once_differentiable  # mean and rstd depend on x: a third derivative would be wrong, so it is refused
    def backward(ctx, G, Gw, Gb):
        g, x, weight, mean, rstd, gw, gb = ctx.saved_tensors
        dg = dx = dw = None
        if G is not None:
            dg, dx, dw = _double_backward(G, g, x, weight, mean, rstd, gw, gb)
        if Gw is not None:  # gw = Σ g x̂
            x_hat = (x - _per_channel(mean, x)) * _per_channel(rstd, x)
            dg = _add(dg, _per_channel(Gw, x) * x_hat)
            dx = _add(dx, _backward(g, x, Gw, mean, rstd)[0])
        if Gb is not None:  # gb = Σ g
            dg = _add(dg, _per_channel(Gb, x).expand_as(g))
        return dg, dx, dw if ctx.needs_input_grad[2] else None, None, None


def _backward(g, x, weight, mean, rstd):
    return aten.native_batch_norm_backward(g, x, weight, None, None, mean, rstd, True, 0.0, (True, True, True))


def _double_backward(G, g, x, weight, mean, rstd, gw, gb):
    """dg, dx and dw of the formulas above."""
    n = x.numel() // x.shape[1]
    dg, sum_Gx, sum_G = _backward(G, x, weight, mean, rstd)
    # The kernel's weight gradient with mean 0 and rstd 1 is Σ G g, in one pass and without a temporary.
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    mask = [False, True, False]
    sum_Gg = aten.native_batch_norm_backward(G, g, one, None, None, zero, one, True, 0.0, mask)[1]

    m_gx, m_Gx = gw / n, sum_Gx / n
    s = (sum_Gg - sum_G * gb / n) / n - m_Gx * m_gx
    k = -rstd * rstd if weight is None else -weight * rstd * rstd
    of_G, of_g, of_x = k * m_gx, k * m_Gx, k * rstd * (s - 2 * m_gx * m_Gx)
    constant = -(of_G * sum_G + of_g * gb) / n - of_x * mean

    dx = torch.addcmul(_per_channel(constant, x), x, _per_channel(of_x, x))
    dx = dx.addcmul_(G, _per_channel(of_G, x)).addcmul_(g, _per_channel(of_g, x))
    return dg, dx.to(x.dtype), None if weight is None else n * rstd * s


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """``[C]`` → ``[1, C, 1, …]`` with the dimensions of ``like``."""
    return values.view([1, -1] + [1] * (like.dim() - 2))


def _add(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b
