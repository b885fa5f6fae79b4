"""Cheap and exact double backward for any image classifier, without a change to the model.

A loss that contains an input gradient needs the derivative of a derivative. PyTorch's is exact and slow for
convolution, batch normalisation and some activations; the rules of this package give the same numbers for less. Wrap
the forward pass, nothing else:

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
>>> images = torch.randn(2, 3, 8, 8, requires_grad=True)
>>> with fast_double_backward():
...     score = model(images).mean()
>>> (saliency,) = torch.autograd.grad(score, images, create_graph=True)
>>> _ = images.requires_grad_(False)  # the last backward then computes no second image gradient
>>> saliency.square().sum().backward()

Attention has no rule of its own: inside the context ``scaled_dot_product_attention`` uses the MATH backend, the only
one with a double backward, whose matrix products are already as cheap as they can be. A model that needs no second
derivative (the student) keeps its fused attention outside of the context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ule_hf.second_order.activation import gelu, hardtanh, relu, relu6
from ule_hf.second_order.batch_norm import batch_norm
from ule_hf.second_order.convolution import convolution

__all__ = ["fast_double_backward"]

RULES = {
    F.conv1d: convolution,
    F.conv2d: convolution,
    F.conv3d: convolution,
    F.batch_norm: batch_norm,
    F.relu: relu,
    F.relu6: relu6,
    F.hardtanh: hardtanh,
    F.gelu: gelu,
}


class _UseRules(TorchFunctionMode):
    """Sends each call of a function in ``RULES`` to its rule, whatever module or library makes the call."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return RULES.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def fast_double_backward() -> Iterator[None]:
    """Forward passes inside this context get a double backward that is exact and cheap.

    It intercepts calls of PyTorch's functions, not modules: weights, names, hooks and saved files stay as they are,
    and every library's layers are covered (timm's ``BatchNormAct2d`` and ``Conv2dSame`` as well). The context may be
    nested, ends with an exception like any other, and concerns the current thread only. ``backward`` and
    ``autograd.grad`` may be called inside or after it. Not with gradient checkpointing, which
    repeats the forward pass outside of the context: PyTorch then stops with a ``CheckpointError``.

    Calls that no rule covers go to PyTorch's own, with a line in the debug log.
    """
    with sdpa_kernel(SDPBackend.MATH), _UseRules():
        yield
