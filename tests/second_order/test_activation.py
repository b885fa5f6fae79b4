from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from ule_hf.second_order import activation

CASES = [
    (activation.relu, F.relu, {}),
    (activation.relu6, F.relu6, {}),
    (activation.hardtanh, F.hardtanh, {}),
    (activation.hardtanh, F.hardtanh, {"min_val": -0.3, "max_val": 2.0}),
    (activation.gelu, F.gelu, {}),
    (activation.gelu, F.gelu, {"approximate": "tanh"}),
]


def values():
    torch.manual_seed(0)
    return (3 * torch.randn(4, 5, 3, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize(("rule", "function", "options"), CASES)
def test_gradients(rule, function, options):
    x = values()
    torch.testing.assert_close(rule(x, **options), function(x, **options), rtol=0, atol=0)
    assert gradcheck(lambda t: rule(t, **options), x)
    assert gradgradcheck(lambda t: rule(t, **options), x)


@pytest.mark.parametrize(("rule", "function", "options"), CASES[:4])
def test_in_place(rule, function, options):
    results = []
    for act in (rule, function):
        x = values()
        y = act(x * 1.5, inplace=True, **options)
        (gx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        results.append((y, gx, *torch.autograd.grad(gx.square().sum(), x)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_a_view_in_place():
    x = values()
    y = x * 1.5
    activation.relu(y[0], inplace=True)
    torch.testing.assert_close(y[0], F.relu(x[0] * 1.5))
    (gx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gx[0], 1.5 * (x[0] > 0).double())
    assert (gx[1:] == 1.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_in_lower_precision(dtype):
    """Not worse than PyTorch's own formula."""
    errors = []
    for act in (activation.gelu, F.gelu):
        exact, x = values(), values().detach().to(dtype).requires_grad_()
        dx = []
        for t, f in ((exact, F.gelu), (x, act)):
            (gx,) = torch.autograd.grad(f(t).sum(), t, create_graph=True)
            dx.append(torch.autograd.grad(gx.sum(), t)[0].double())
        errors.append((dx[0] - dx[1]).norm())
    assert errors[0] <= 1.2 * errors[1] + 1e-6
