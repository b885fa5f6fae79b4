from __future__ import annotations

import itertools
import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ule_hf.second_order.convolution import convolution

GEOMETRIES = [
    {},
    {"stride": 2},
    {"stride": 3, "padding": 2},
    {"padding": 1},
    {"padding": "valid"},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"padding": (1, 0), "stride": (2, 1), "dilation": (1, 2)},
    {"groups": 2, "padding": 1},
    {"groups": 4, "padding": 1, "stride": 2},  # depthwise
]


def operands(groups=1, kernel=(3, 3), channels=4, size=(7, 6), bias=True):
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, channels // groups, *kernel, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True) if bias else None
    return x, w, b


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gradients(geometry, bias):
    x, w, b = operands(geometry.get("groups", 1), bias=bias)

    def layer(*tensors):
        return convolution(*tensors, **geometry)

    inputs = (x, w, b) if bias else (x, w)
    torch.testing.assert_close(layer(*inputs), F.conv2d(x, w, b, **geometry))
    assert gradcheck(layer, inputs, fast_mode=True)
    assert gradgradcheck(layer, inputs, fast_mode=True)


def two(lowest, highest):
    return st.tuples(st.integers(lowest, highest), st.integers(lowest, highest))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    kernel=two(1, 3),
    stride=two(1, 3) | st.integers(1, 3),
    padding=two(0, 3) | st.just("same"),
    dilation=two(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_any_geometry(kernel, stride, padding, dilation, groups, bias, channels_last):
    """Values, both derivatives against PyTorch's own, and the second one against finite differences."""
    geometry = {"stride": 1 if padding == "same" else stride, "padding": padding, "dilation": dilation}
    geometry["groups"] = groups
    x, w, b = operands(groups, kernel, bias=bias)
    if channels_last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    inputs = (x, w, b) if bias else (x, w)
    results = []
    for conv in (convolution, F.conv2d):
        y = conv(*inputs, **geometry)
        (gx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        results.append((y, gx, *torch.autograd.grad(gx.square().sum(), inputs, allow_unused=True)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-9)
    assert gradgradcheck(lambda *t: convolution(*t, **geometry), inputs, fast_mode=True)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kernel", [(2, 4), (1, 1)], ids=str)
def test_same_padding_of_an_even_kernel(kernel):
    x, w, b = operands(kernel=kernel)
    torch.testing.assert_close(convolution(x, w, b, padding="same"), F.conv2d(x, w, b, padding="same"))
    assert gradgradcheck(lambda *t: convolution(*t, padding="same"), (x, w, b), fast_mode=True)


@pytest.mark.parametrize(("conv", "size"), [(F.conv1d, (9,)), (F.conv3d, (5, 4, 4))])
def test_one_and_three_dimensions(conv, size):
    x, w, b = operands(kernel=(3,) * len(size), size=size)
    torch.testing.assert_close(convolution(x, w, b, 2, 1), conv(x, w, b, 2, 1))
    assert gradgradcheck(lambda *t: convolution(*t, 2, 1), (x, w, b), fast_mode=True)


STRIDED = [(s, k, p) for s, k, p in itertools.product((2, 3, 4), (1, 3, 4, 7), (0, 1, 3)) if p < k]


@pytest.mark.parametrize(("stride", "kernel", "padding"), STRIDED)
def test_first_layer_on_images(stride, kernel, padding):
    x, w, b = operands(kernel=(kernel, kernel), channels=3, size=(13, 10))
    (expected,) = torch.autograd.grad(F.conv2d(x, w, b, stride, padding).square().sum(), x)
    (found,) = torch.autograd.grad(convolution(x, w, b, stride, padding).square().sum(), x)
    torch.testing.assert_close(found, expected)


class WantedGradients(TorchDispatchMode):
    """Records which gradients (input, weight, bias) each call of convolution_backward was asked for."""

    def __init__(self):
        super().__init__()
        self.wanted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.wanted.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


def test_saliency_pass_computes_no_parameter_gradient():
    x, w, b = operands()
    score = convolution(convolution(x, w, b, padding=1), w, b).square().sum()
    with WantedGradients() as saliency_pass:
        (gx,) = torch.autograd.grad(score, x, create_graph=True)
    assert saliency_pass.wanted == [(True, False, False)] * 2

    gx.square().sum().backward()
    found = x.grad, w.grad, b.grad
    x, w, b = operands()
    (gx,) = torch.autograd.grad(F.conv2d(F.conv2d(x, w, b, padding=1), w, b).square().sum(), x, create_graph=True)
    gx.square().sum().backward()
    torch.testing.assert_close(found, (x.grad, w.grad, b.grad))


def test_last_backward_can_leave_the_images_out():
    x, w, b = operands()
    y = convolution(x, w, b)
    torch.autograd.grad(y.square().sum(), x, create_graph=True)
    x.requires_grad_(False)
    with WantedGradients() as last_backward:
        y.square().sum().backward()
    assert last_backward.wanted == [(False, True, True)]
    assert x.grad is None and w.grad is not None


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_frozen_parameters(frozen):
    x, w, b = operands()
    w.requires_grad_(frozen == "bias")
    b.requires_grad_(frozen == "weight")
    (gx,) = torch.autograd.grad(convolution(x, w, b).pow(3).sum(), x, create_graph=True)
    gx.square().sum().backward()
    assert (w.grad is not None) == w.requires_grad and (b.grad is not None) == b.requires_grad


def test_weight_gradient_may_be_differentiated():
    x, w, b = operands()
    (found,) = torch.autograd.grad(convolution(x, w, b).pow(3).sum(), w, create_graph=True)
    (expected,) = torch.autograd.grad(F.conv2d(x, w, b).pow(3).sum(), w, create_graph=True)
    for t in (x, w, b):
        pair = (torch.autograd.grad(gw.square().sum(), t, retain_graph=True)[0] for gw in (found, expected))
        torch.testing.assert_close(*pair)


def test_uncovered_input_falls_back_with_a_debug_line(caplog):
    x, w, b = operands()
    with caplog.at_level(logging.DEBUG, logger="ule_hf.second_order.convolution"):
        y = convolution(x[0], w, b)
    torch.testing.assert_close(y, F.conv2d(x[0], w, b))
    assert "no rule" in caplog.text


def test_channels_last_is_kept():
    x, w, b = (t.detach().to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in operands())
    x.requires_grad_(), w.requires_grad_()
    y = convolution(x, w, b)
    (gx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gx.is_contiguous(memory_format=torch.channels_last)
