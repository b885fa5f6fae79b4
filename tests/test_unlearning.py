from __future__ import annotations

from typing import get_args

import pytest
import torch

from ule_hf.unlearning import MapTerm, apply_control, unlearning_term

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
