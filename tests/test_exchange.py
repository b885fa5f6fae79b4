from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ule_hf.errors import UleError
from ule_hf.exchange import control_cells, decisive_cells, exchange
from ule_hf.pair import StudentTeacher
from ule_hf.variant import Variant

EXCHANGE = Variant(
    attribution="path",
    score="difference",
    grid=(2, 2),
    map_sign="signed",
    term="exchange",
    student_loss="cross_entropy",
)
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


class LooksAt(nn.Module):
    """Classifies by the brightness of one quadrant, all of it or none."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.row, self.column = row, column
        self.weight = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quadrant = x[:, :, 2 * self.row : 2 * self.row + 2, 2 * self.column : 2 * self.column + 2]
        return quadrant.mean(dim=(1, 2, 3))[:, None] * self.weight


class Remembers(nn.Module):
    """A linear classifier that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 2)
        self.shown: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shown.append(x.detach().clone())
        return self.linear(x.flatten(1))


def pictures() -> torch.Tensor:
    """Noise, and a top right quadrant that is bright in class 1 and dark in class 0."""
    images = torch.randn(len(LABELS), 1, 4, 4)
    images[:, :, :2, 2:] = (2.0 * LABELS - 1)[:, None, None, None]
    return images


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0.05, 1), st.integers(0, 2**31))
def test_the_fewest_cells_that_cover_the_share(samples, cells, coverage, seed):
    contributions = torch.randn(samples, cells, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = decisive_cells(contributions, coverage)
    assert not chosen.all(dim=1).any()
    assert (contributions[chosen] > 0).all()
    for row, taken in zip(contributions.clamp_min(0), chosen, strict=True):
        wanted = coverage * row.sum()
        everything_but_one = taken.sum() == cells - 1
        assert row[taken].sum() >= wanted - 1e-12 or everything_but_one
        if taken.any():
            assert row[taken].sum() - row[taken].min() < wanted  # without the least of them it would not do
            assert row[taken].min() >= row[~taken].max()


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**31))
def test_every_pixel_comes_from_the_image_or_from_its_partner(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, 7, 9, generator=generator)
    partners = torch.tensor([1, 2, 0])
    cells = torch.rand(3, rows * columns, generator=generator) < 0.5
    mixed = exchange(images, partners, cells, (rows, columns))
    inside = (mixed == images[partners]).all(dim=1)
    assert torch.equal(mixed, torch.where(inside[:, None], images[partners], images))
    where = F.adaptive_max_pool2d(inside.float()[:, None], (rows, columns)).flatten(1) > 0
    assert (where | ~cells).all()


def test_controls_keep_the_number_of_cells():
    cells = torch.rand(16, 9) < 0.4
    at_random = control_cells(cells, "constant", torch.Generator().manual_seed(0))
    assert torch.equal(at_random.sum(dim=1), cells.sum(dim=1))
    assert not torch.equal(at_random, cells)
    assert torch.equal(control_cells(cells, "shuffled")[1:], cells[:-1])
    assert torch.equal(control_cells(cells, "none"), cells)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_the_teacher_sees_the_students_quadrant_of_another_class_under_its_own_label(fraction):
    images, teacher = pictures(), Remembers()
    pair = StudentTeacher(LooksAt(0, 1), teacher, EXCHANGE).train()
    options = {"train_student": False, "unlearning_fraction": fraction, "generator": torch.Generator().manual_seed(0)}
    output = pair(images, LABELS, unlearning_weight=0.3, **options)
    some = round(fraction * len(LABELS))
    plain, exchanged = teacher.shown
    assert torch.equal(plain, images)
    assert torch.equal(exchanged[:, :, :2, 2:].mean(dim=(1, 2, 3)), 1.0 - 2 * LABELS[:some])
    kept = torch.ones(4, 4, dtype=torch.bool)
    kept[:2, 2:] = False
    assert torch.equal(exchanged[..., kept], images[:some][..., kept])
    assert output.exchanged_share == 0.25
    term = F.cross_entropy(teacher.linear(exchanged.flatten(1)), LABELS[:some])
    torch.testing.assert_close(output.unlearning_loss, term)
    whole = F.cross_entropy(teacher.linear(images.flatten(1)), LABELS) + 0.3 * term + output.student_loss
    torch.testing.assert_close(output.loss, whole)


def test_a_frozen_student_gets_no_gradient_and_counts_each_batch_once():
    student = nn.Sequential(nn.BatchNorm2d(1), LooksAt(0, 1), nn.Dropout(0.5))
    pair = StudentTeacher(student, Remembers(), EXCHANGE).train()
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}
    outputs = [pair(pictures(), LABELS, unlearning_weight=1.0, train_student=False) for _ in range(2)]
    outputs[0].loss.backward()
    assert all(p.grad is None for p in student.parameters())
    assert all(p.grad is not None for p in pair.teacher.parameters())
    assert all(torch.equal(before[name], parameter) for name, parameter in student.named_parameters())
    assert student[0].num_batches_tracked == 2  # not the mixed images
    assert all(module.training for module in student.modules())


def test_a_student_that_was_just_frozen_is_asked_by_the_batch():
    """By its running statistics, which have hardly counted yet, a bright quadrant is like a dark one."""
    student, images = nn.Sequential(nn.BatchNorm2d(1), nn.Hardtanh(), LooksAt(0, 1)), pictures()
    student[0].running_mean.fill_(100.0)
    pair = StudentTeacher(student, Remembers(), EXCHANGE).train()
    output = pair(images, LABELS, unlearning_weight=1.0, train_student=False, ask_student=True)
    assert output.dead_maps == len(LABELS)
    assert output.student_turned == 1
    assert student[0].num_batches_tracked == 1  # neither mixed nor exchanged images


def test_a_student_that_sees_nothing_exchanges_nothing():
    student = LooksAt(0, 1)
    nn.init.zeros_(student.weight)
    output = StudentTeacher(student, Remembers(), EXCHANGE).train()(pictures(), LABELS, unlearning_weight=1.0)
    assert output.exchanged_share == 0
    assert output.dead_maps == len(LABELS)


@pytest.mark.parametrize("change", [{"grid": None}, {"attribution": "gradient", "score": "label"}, {"map_sign": "abs"}])
def test_choices_that_the_term_cannot_do_without(change):
    with pytest.raises(UleError, match="term 'exchange' needs"):
        Variant(**{**vars(EXCHANGE), **change})


@pytest.mark.parametrize(("row", "column", "at_least"), [(0, 1, 1.0), (1, 0, 0.0)])
def test_the_student_is_asked_whether_the_exchange_turns_it(row, column, at_least):
    """It always does where the student decides by the one cell that tells the classes apart."""
    student, teacher, images = LooksAt(row, column), Remembers(), pictures()
    pair = StudentTeacher(student, teacher, EXCHANGE).train()
    partners = torch.tensor([1, 0, 3, 2, 5, 4])
    options = {"unlearning_weight": 1.0, "partners": partners, "points": torch.full((6,), 0.5)}
    output = pair(images, LABELS, train_student=False, ask_student=True, **options)
    taken_for_partners = student(teacher.shown[-1]).argmax(dim=1) == LABELS[partners]
    assert output.student_turned == taken_for_partners.float().mean() >= at_least
    assert pair(images, LABELS, train_student=False, **options).student_turned is None
