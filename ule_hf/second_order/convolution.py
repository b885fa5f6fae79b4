"""Convolution whose double backward costs what its arithmetic costs.

A convolution ``y = x * w`` is linear in the input and in the weight, so all of its derivatives are convolutions or
weight gradients. With ``g`` the gradient of ``y``, and ``G`` the gradient that arrives at the input gradient ``gx``:

===============  ======================  ==============================
backward         ``gx = g *ᵀ w``         ``gw = weight_gradient(g, x)``
double backward  ``dg = G * w``          ``dw = weight_gradient(g, G)``
===============  ======================  ==============================

PyTorch computes ``dw`` as a convolution whose kernel is as large as the feature map; here it is an ordinary weight
gradient with ``G`` in the place of the input, as in StyleGAN's ``conv2d_gradfix`` (Karras et al., 2020).

**No parameter gradient in the saliency pass.** ``autograd.grad(score, x)`` runs every node that leads to ``x``, and
the ``backward`` of a Python function is not told which of its results are wanted: ``ctx.needs_input_grad`` is True
for the weight too. A single node would hence compute ``gw`` and throw it away. Here each gradient has its own node:

* ``_Convolution`` leads to ``x``: its backward computes ``gx`` and passes ``g`` on as the gradient of a *ticket*;
* ``_Ticket`` leads to weight and bias only. Its output, the ticket, is a zero in the shape of ``y`` that takes no
  memory; its backward turns ``g`` into ``gw``.

When only ``x`` is asked for, the engine itself leaves ``_Ticket`` out; an ordinary backward runs it. No flag is needed.

**No image gradient in the last backward.** An image that required its gradient for the saliency pass would get one
more in ``loss.backward()``, which nobody reads. After ``images.requires_grad_(False)`` the first layer skips it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

logger = logging.getLogger(__name__)
aten = torch.ops.aten


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv1d``, ``F.conv2d`` or ``F.conv3d`` (by the dimensions of ``weight``) with a cheap double backward.

    Args:
        input: ``[B, C_in, *spatial]``.
        weight: ``[C_out, C_in / groups, *kernel]``.
        bias: ``[C_out]`` or None.
    """
    n = weight.dim() - 2
    if not (torch.is_grad_enabled() and input.requires_grad):
        return _torch_convolution(n)(input, weight, bias, stride, padding, dilation, groups)
    if input.dim() != weight.dim() or not input.is_floating_point():
        logger.debug("convolution: no rule for %s %s", input.dtype, tuple(input.shape))
        return _torch_convolution(n)(input, weight, bias, stride, padding, dilation, groups)

    stride, dilation = _per_dimension(stride, n), _per_dimension(dilation, n)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):  # PyTorch puts the odd zero at the end
            input = F.pad(input, [side for t in reversed(total) for side in (0, t % 2)])
        padding = [t // 2 for t in total]
    padding = [0] * n if padding == "valid" else _per_dimension(padding, n)
    input, weight, bias = _autocast(input, weight, bias)

    geometry = _Geometry(stride, padding, dilation, groups)
    ticket = None
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        ticket = _Ticket.apply(weight, bias, (input,), geometry)
    return _Convolution.apply(input, weight, bias, ticket, geometry)


class _Geometry(NamedTuple):
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def output_shape(self, x: Tensor, weight: Tensor) -> list[int]:
        sizes = zip(x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return [x.shape[0], weight.shape[0], *((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        stride, padding, dilation, groups = self
        return aten.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)

    def backward(self, g: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """The gradients of input, weight and bias, each if it is ``wanted``."""
        stride, padding, dilation, groups = self
        shared = (stride, padding, dilation, False, [0] * len(stride), groups)
        return aten.convolution_backward(g, x, weight, [weight.shape[0]], *shared, wanted)


class _Ticket(Function):
    """(weight, bias) → a zero in the shape of ``y``; its gradient becomes the gradients of weight and bias."""

    @staticmethod
    def forward(ctx, weight, bias, untracked_input, geometry):
        # In a tuple the input gives no edge to the graph, so a pass towards the input does not run this node;
        # as a saved tensor it still has its history, for those who differentiate a weight gradient.
        (x,) = untracked_input
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return weight.new_zeros(()).expand(geometry.output_shape(x, weight))

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        _, gw, gb = ctx.geometry.backward(g, x, weight, [False, *ctx.needs_input_grad[:2]])
        return gw, gb, None, None


class _Convolution(Function):
    """(x, weight, bias, ticket) → y; only ``x`` and the ticket get a gradient from here."""

    @staticmethod
    def forward(ctx, x, weight, bias, ticket, geometry):
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return geometry.forward(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        # Not ctx.needs_input_grad, which does not see that an image's requires_grad was switched off since.
        gx = _InputGradient.apply(g, weight, x.detach(), ctx.geometry) if x.requires_grad else None
        return gx, None, None, g if ctx.needs_input_grad[3] else None, None


class _InputGradient(Function):
    """(g, weight) → gx; ``x`` tells the shape and the memory format."""

    @staticmethod
    def forward(ctx, g, weight, x, geometry):
        ctx.save_for_backward(g, weight)
        ctx.geometry = geometry
        if _is_image_layer(x, geometry):
            return _image_gradient(g, weight, x, geometry)
        return geometry.backward(g, x, weight, [True, False, False])[0]

    @staticmethod
    def backward(ctx, G):
        g, weight = ctx.saved_tensors
        dg = ctx.geometry.forward(G, weight) if ctx.needs_input_grad[0] else None
        dw = ctx.geometry.backward(g, G, weight, [False, True, False])[1] if ctx.needs_input_grad[1] else None
        return dg, dw, None, None


def _is_image_layer(x: Tensor, geometry: _Geometry) -> bool:
    """Whether this is a strided first layer on the CPU, where the library's input gradient is slow."""
    stride, _, dilation, groups = geometry
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.shape[1] <= 4
        and groups == 1
        and stride[0] == stride[1] > 1
        and dilation == [1, 1]
    )


def _image_gradient(g: Tensor, weight: Tensor, x: Tensor, geometry: _Geometry) -> Tensor:
    """The input gradient of a convolution with stride ``s``: one convolution of ``g`` and a pixel shuffle.

    The pixels of one phase (row mod s, column mod s) see every s-th row and column of the kernel, so ``g`` convolved
    with s² small kernels gives all phases (sub-pixel convolution; Shi et al., 2016). On a CPU it takes 0.4 of the
    library's time for ResNet's 7 × 7 kernel and 0.25 for a 4 × 4 patch embedding.
    """
    s, (top, left), (height, width) = geometry.stride[0], geometry.padding, x.shape[2:]
    rows, columns = (-(-k // s) for k in weight.shape[2:])  # of a phase's kernel
    kernel = F.pad(weight, (0, columns * s - weight.shape[3], 0, rows * s - weight.shape[2]))
    kernel = kernel.unflatten(3, (columns, s)).unflatten(2, (rows, s))  # [O, I, rows, s, columns, s]
    kernel = kernel.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).flip(2, 3)  # [I s s, O, rows, columns]
    memory_format = (
        torch.channels_last if g.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    phases = F.conv2d(g, kernel.contiguous(memory_format=memory_format), padding=(rows - 1, columns - 1))
    padded = F.pixel_shuffle(phases, s)
    # Pixels at the far end that no output has seen lie outside of it; their gradient is zero.
    below, right = top + height - padded.shape[2], left + width - padded.shape[3]
    return F.pad(padded, (-left, right, -top, below))


def _per_dimension(value: int | Sequence[int], n: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def _torch_convolution(n: int):
    return (F.conv1d, F.conv2d, F.conv3d)[n - 1]


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """What autocast does to the arguments of a convolution; a Python function has to do it itself."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors]
