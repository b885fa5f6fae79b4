from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from tests.second_order.double_backward import plain_double_backward, relative_error, step
from ule_hf.second_order import fast_double_backward
from ule_hf.second_order.batch_norm import batch_norm


def operands(shape=(3, 4, 3, 2), memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64) * 2 + 1
    x = x.to(memory_format=memory_format).requires_grad_()
    w, b = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mean, var = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5
    return x, w, b, mean, var


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 5), (3, 4, 3, 2), (2, 4, 2, 2, 3)], ids=str)
def test_gradients(shape, affine, training):
    x, w, b, mean, var = operands(shape)

    def layer(x, w=None, b=None):
        return batch_norm(x, mean.clone(), var.clone(), w, b, training)

    inputs = (x, w, b) if affine else (x,)
    torch.testing.assert_close(
        layer(*inputs), F.batch_norm(x, mean.clone(), var.clone(), *inputs[1:], training=training)
    )
    assert gradcheck(layer, inputs)
    assert gradgradcheck(layer, inputs)


def test_gradients_in_channels_last():
    x, w, b, _, _ = operands(memory_format=torch.channels_last)
    assert gradgradcheck(lambda *t: batch_norm(t[0], None, None, *t[1:], training=True), (x, w, b))


def test_gradient_that_is_zero_or_expanded():
    """A zero weight (the last one of a residual block starts so), and the stride-0 gradient of a mean."""
    x, _, b, _, _ = operands(memory_format=torch.channels_last)
    w = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    results = []
    for norm in (batch_norm, F.batch_norm):
        y = norm(x, None, None, w, b, True)
        (gx,) = torch.autograd.grad((y.mean((2, 3)) ** 3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(gx.sum((2, 3)).square().sum() + gx[0].pow(2).sum() + gx[1].sum(), (x, w)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_identical(momentum):
    layers = [nn.BatchNorm2d(4, momentum=momentum) for _ in range(2)]
    for _ in range(3):
        x = torch.randn(5, 4, 3, 3, requires_grad=True)
        layers[0](x)
        with fast_double_backward():
            layers[1](x)
    for name, value in layers[0].state_dict().items():
        assert torch.equal(value, layers[1].state_dict()[name]), name


def test_running_statistics_switched_off():
    layer = nn.BatchNorm2d(4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.track_running_stats = False
    with fast_double_backward():
        layer(torch.randn(5, 4, 3, 3, requires_grad=True))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_one_value_per_channel_is_refused_like_everywhere():
    with pytest.raises(ValueError, match="more than 1 value per channel"), fast_double_backward():
        nn.BatchNorm2d(4)(torch.randn(1, 4, 1, 1, requires_grad=True))


def test_third_derivative_is_refused():
    x, w, b, _, _ = operands()
    (gx,) = torch.autograd.grad(batch_norm(x, None, None, w, b, True).pow(3).sum(), x, create_graph=True)
    (ggx,) = torch.autograd.grad(gx.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        ggx.sum().backward()


def test_channels_last_is_kept():
    x, w, b, _, _ = operands(memory_format=torch.channels_last)
    y = batch_norm(x, None, None, w, b, True)
    (gx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (ggx,) = torch.autograd.grad(gx.square().sum(), x)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (y, gx, ggx))


@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_activations_have_float32_statistics(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 2)).train(training)
    images = torch.randn(16, 3, 8, 8)
    found = step(model, images, fast_double_backward, autocast=torch.bfloat16)
    plain = step(model, images, plain_double_backward, autocast=torch.bfloat16)
    exact = step(model.double(), images.double(), plain_double_backward)
    assert relative_error(found, exact) <= 1.2 * relative_error(plain, exact)


@pytest.mark.parametrize("mean", [0, 30])
def test_float32_is_not_worse_than_plain(mean):
    """Also where the mean is large beside the spread, and differences of large numbers are taken."""
    x, w, b, _, _ = (t.detach() for t in operands((8, 4, 6, 6)))
    x = x / 2 + mean
    derivatives = []
    for norm, dtype in ((batch_norm, torch.float32), (F.batch_norm, torch.float32), (F.batch_norm, torch.float64)):
        t = [value.to(dtype).requires_grad_() for value in (x, w, b)]
        (gx,) = torch.autograd.grad(norm(t[0], None, None, *t[1:], training=True).pow(3).sum(), t[0], create_graph=True)
        derivatives.append((gx, *torch.autograd.grad(gx.square().sum(), t[:2])))
    found, plain, exact = derivatives
    rounding = torch.finfo(torch.float32).eps  # plain may be exact to less by chance
    assert relative_error(found, exact) <= 2 * max(relative_error(plain, exact), rounding)
