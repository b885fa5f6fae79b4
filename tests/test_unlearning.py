from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from ule_hf.attribution import log_odds, path_attribution
from ule_hf.unlearning import MapTerm, apply_control, correlation, unlearning_term

TERMS = get_args(MapTerm)


@pytest.mark.parametrize("term", TERMS)
def test_gradient_of_each_term(term):
    student = torch.rand(3, 6, dtype=torch.float64) + 0.1
    teacher = (torch.rand(3, 6, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: unlearning_term(student, m, term), teacher)


@pytest.mark.parametrize("term", TERMS)
def test_each_term_rewards_looking_where_the_student_does_not(term):
    student = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    same, elsewhere = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert unlearning_term(student, elsewhere, term) < unlearning_term(student, same, term)


@pytest.mark.parametrize("term", TERMS)
def test_maps_of_zeros_give_a_finite_term_and_gradient(term):
    teacher = torch.zeros(2, 4, requires_grad=True)
    value = unlearning_term(torch.zeros(2, 4), teacher, term).sum()
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(teacher.grad).all()


@pytest.mark.parametrize("term", TERMS)
def test_the_constant_control_knows_nothing_of_the_student(term):
    one, other = (apply_control(torch.rand(2, 4), "constant", term) for _ in range(2))
    assert torch.equal(one, other)


def test_the_shuffled_control_gives_every_sample_another_ones_map():
    maps = torch.arange(4.0)[:, None].expand(4, 3)
    shuffled = apply_control(maps, "shuffled", "overlap")
    assert (shuffled != maps).all() and set(shuffled[:, 0].tolist()) == {0, 1, 2, 3}


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 2**31))
def test_the_correlation_is_the_cosine_of_the_differences_between_images_of_a_class(classes, of_each, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(of_each)
    student, teacher = torch.randn(2, len(labels), generator=generator, dtype=torch.float64)
    same = labels[:, None] == labels
    differences = [(scores[:, None] - scores)[same] for scores in (student, teacher)]
    assume(all(of_model.square().sum() > 0.1 for of_model in differences))  # far above the epsilon
    expected = torch.cosine_similarity(*differences, dim=0) ** 2
    rho2 = correlation(student, teacher, labels)
    torch.testing.assert_close(rho2, expected, rtol=1e-4, atol=1e-6)
    other_units = correlation(5 * student + labels, -2 * teacher - 3 * labels, labels)
    torch.testing.assert_close(other_units, rho2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(correlation(student, student, labels), torch.ones_like(rho2), rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert correlation(student, teacher, labels) == rho2
    assert correlation(student, teacher, labels, "constant") == 0
    assert correlation(student, teacher, labels, "shuffled") == correlation(student.roll(1), teacher, labels)


def test_differences_of_log_odds_are_path_attributions_summed_over_the_picture():
    """Completeness, by 512 points on the path; so the correlation needs no gradient."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()
    here, there = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    points = (torch.arange(512, dtype=torch.float64) + 0.5) / 512
    label = torch.tensor([2])
    images = (here + points[:, None, None, None] * (there - here)).requires_grad_()
    scores = log_odds(model(images), label.expand(512))
    summed = path_attribution(scores, images, (there - here).expand_as(images)).flatten(1).sum(dim=1).mean()
    of_both = log_odds(model(torch.stack([here, there])), label.expand(2))
    torch.testing.assert_close(summed, of_both[1] - of_both[0], rtol=1e-3, atol=1e-4)


def test_the_correlation_of_scores_that_do_not_vary_is_nothing_and_has_a_gradient():
    labels, teacher = torch.tensor([0, 0, 1, 2]), torch.zeros(4, requires_grad=True)
    rho2 = correlation(torch.tensor([1.0, 2.0, 3.0, 4.0]), teacher, labels)
    rho2.backward()
    assert rho2 == 0 and torch.equal(teacher.grad, torch.zeros(4))
    assert correlation(torch.tensor([1.0, 2.0, 3.0, torch.nan]), torch.rand(4), labels).isnan()
