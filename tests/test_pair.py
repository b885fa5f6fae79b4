from __future__ import annotations

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import smooth_network
from ule_hf.attribution import class_score, draw_path
from ule_hf.pair import StudentTeacher, frozen_batch_statistics, generalised_cross_entropy
from ule_hf.variant import Variant

PAPER = Variant()
PATH = Variant(
    attribution="path",
    score="difference",
    grid=(2, 2),
    term="overlap",
    student_loss="generalised_cross_entropy",
)
VARIANTS = {
    "paper": PAPER,
    "path": PATH,
    "gradient-log_prob-overlap": Variant(score="log_prob", map_norm="l2", term="overlap"),
    "gradient-relu-grid-mass": Variant(grid=(2, 1), map_sign="relu", map_norm="sum", term="mass"),
    "gradient-signed": Variant(map_sign="signed"),
    "path-dense-kl": Variant(attribution="path", score="difference", term="kl"),
    "path-rank": Variant(attribution="path", score="label", grid=(4, 1), map_norm="rank", term="inverse"),
    "path-constant": Variant(attribution="path", score="difference", grid=(2, 2), term="overlap", control="constant"),
}


@pytest.fixture
def batch():
    return torch.randn(8, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def pair_of(variant: Variant) -> StudentTeacher:
    return StudentTeacher(smooth_network(), smooth_network(), variant).train()


def path_for(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    partners, points = draw_path(labels, torch.Generator().manual_seed(3))
    return {"partners": partners, "points": points.double()}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_gradient_of_the_whole_loss_against_finite_differences(name, batch):
    images, labels = batch
    pair, path = pair_of(VARIANTS[name]), path_for(labels)

    def loss() -> torch.Tensor:
        return pair(images, labels, unlearning_weight=0.7, **path).loss

    pair.zero_grad()
    loss().backward()
    # abs, relu and max have kinks; a step this small straddles one with negligible probability
    step = 1e-6
    for model in (pair.student, pair.teacher):
        for parameter in model.parameters():
            direction = torch.randn_like(parameter)
            exact = (parameter.grad * direction).sum()
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.add_(direction, alpha=sign * step)
                if model is pair.student:
                    # the student's map is a constant for the term: only its own loss answers for it
                    values.append(pair(images, labels).student_loss.item())
                else:
                    values.append(loss().item())
                with torch.no_grad():
                    parameter.sub_(direction, alpha=sign * step)
            torch.testing.assert_close(exact.item(), (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("variant", [PAPER, PATH], ids=["paper", "path"])
def test_the_students_gradient_never_sees_the_term(variant, batch):
    images, labels = batch
    pair, path = pair_of(variant), path_for(labels)
    gradients = []
    for weight in (0.0, 5.0):
        pair.zero_grad()
        pair(images, labels, unlearning_weight=weight, **path).loss.backward()
        gradients.append([[p.grad.clone() for p in m.parameters()] for m in (pair.student, pair.teacher)])
    off, on = gradients
    for without, with_term in zip(off[0], on[0], strict=True):
        assert torch.equal(without, with_term)
    # the weights, that is: a bias of the last layer shifts the score by a constant and leaves its gradient alone
    assert not torch.equal(off[1][0], on[1][0])


@pytest.mark.parametrize("variant", [PAPER, PATH], ids=["paper", "path"])
def test_a_batch_equals_the_mean_of_its_accumulated_halves(variant, batch):
    images, labels = batch
    pair = pair_of(variant)
    # partners within each half, so that the whole batch and its halves walk the same paths
    halves = [draw_path(labels[i : i + 4], torch.Generator().manual_seed(i)) for i in (0, 4)]
    partners = torch.cat([halves[0][0], halves[1][0] + 4])
    points = torch.cat([halves[0][1], halves[1][1]]).double()

    pair.zero_grad()
    pair(images, labels, unlearning_weight=1.0, partners=partners, points=points).loss.backward()
    whole = [p.grad.clone() for p in pair.parameters()]
    pair.zero_grad()
    for i, (half_partners, half_points) in zip((0, 4), halves, strict=True):
        part = slice(i, i + 4)
        output = pair(
            images[part], labels[part], unlearning_weight=1.0, partners=half_partners, points=half_points.double()
        )
        (output.loss / 2).backward()
    for expected, parameter in zip(whole, pair.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-12)


def test_mixed_images_leave_batch_statistics_alone():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    images, labels = torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    plain, with_path = (StudentTeacher(copy.deepcopy(network), copy.deepcopy(network), PATH).train() for _ in range(2))
    plain(images, labels)
    output = with_path(images, labels, unlearning_weight=1.0)
    assert output.unlearning_loss is not None
    for (name, expected), (_, buffer) in zip(plain.named_buffers(), with_path.named_buffers(), strict=True):
        assert torch.equal(expected, buffer), name
    assert with_path.teacher[1].track_running_stats


def test_frozen_batch_statistics_still_normalises_by_the_batch():
    norm, x = nn.BatchNorm2d(3).train(), 5 + torch.randn(4, 3, 2, 2)
    expected = norm(x)
    before = norm.running_mean.clone()
    with frozen_batch_statistics(norm):
        torch.testing.assert_close(norm(x), expected)
    assert torch.equal(norm.running_mean, before)


def test_one_class_in_a_batch_contributes_no_term(batch):
    images, labels = batch
    output = pair_of(PATH)(images, torch.zeros_like(labels), unlearning_weight=1.0)
    assert output.unlearning_loss is None
    torch.testing.assert_close(output.loss, output.student_loss + output.teacher_loss)


def test_during_the_head_start_the_teacher_is_not_called(batch):
    images, labels = batch
    pair = pair_of(PATH)
    pair.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was called"))
    output = pair(images, labels, unlearning_weight=1.0, train_teacher=False)
    output.loss.backward()
    assert all(p.grad is None for p in pair.teacher.parameters())
    assert all(p.grad is not None for p in pair.student.parameters())


def test_evaluation_gives_both_logits_and_the_teachers_loss(batch):
    images, labels = batch
    pair = pair_of(PAPER).eval()
    with torch.no_grad():
        output = pair(images, labels, unlearning_weight=1.0)
    torch.testing.assert_close(output.logits, pair.teacher(images))
    torch.testing.assert_close(output.student_logits, pair.student(images))
    torch.testing.assert_close(output.loss, output.teacher_loss)


def test_student_and_teacher_may_differ(batch):
    images, labels = batch
    student = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double()
    pair = StudentTeacher(student, smooth_network(), PAPER).train()
    pair(images, labels, unlearning_weight=1.0).loss.backward()
    assert all(p.grad is not None for p in pair.parameters())


def test_dead_maps_are_counted(batch):
    images, labels = batch
    pair = pair_of(PAPER)
    nn.init.zeros_(pair.student[-1].weight)
    output = pair(images, labels, unlearning_weight=1.0)
    assert output.dead_maps == len(labels) and torch.isfinite(output.loss)


def test_generalised_cross_entropy():
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    probability = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(generalised_cross_entropy(logits, labels, 0.7), ((1 - probability**0.7) / 0.7).mean())
    torch.testing.assert_close(
        generalised_cross_entropy(logits, labels, 1e-6), nn.functional.cross_entropy(logits, labels), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("variant", [PAPER, PATH, VARIANTS["gradient-log_prob-overlap"]], ids=["paper", "path", "log"])
def test_the_term_on_a_part_of_the_batch_is_that_of_the_smaller_batch(variant):
    """With BatchNorm, whose statistics couple the samples."""
    images, labels = torch.randn(7, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 0, 1, 0])
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)).double()
    pair = StudentTeacher(copy.deepcopy(network), network, variant).train()
    partners, points = torch.tensor([1, 0, 0, 1, 1, 0, 1]), torch.rand(7, dtype=torch.float64)

    def teachers_gradient(samples: int, weight: float, fraction: float = 1.0) -> list[torch.Tensor]:
        pair.zero_grad()
        some = {"partners": partners[:samples], "points": points[:samples], "unlearning_fraction": fraction}
        pair(images[:samples], labels[:samples], weight, **some).loss.backward()
        return [p.grad.clone() for p in pair.teacher.parameters()]

    found = teachers_gradient(7, 1.5, fraction=0.5)  # four of seven
    parts = zip(teachers_gradient(7, 0.0), teachers_gradient(4, 1.5), teachers_gradient(4, 0.0), strict=True)
    for gradient, (plain, with_term, without) in zip(found, parts, strict=True):
        torch.testing.assert_close(gradient, plain + with_term - without, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", ["predicted", "label", "log_prob"])
@pytest.mark.parametrize("student_loss", ["cross_entropy", "generalised_cross_entropy"])
def test_the_students_gradients_and_map_are_those_of_separate_passes(score, student_loss):
    images, labels = torch.randn(6, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 0, 1])
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)).double()
    pair = StudentTeacher(network, copy.deepcopy(network), Variant(score=score, student_loss=student_loss)).train()
    seen = []
    pair._maps = lambda student, teacher: seen.append(student) or StudentTeacher._maps(pair, student, teacher)
    pair(images, labels, unlearning_weight=1.0).loss.backward()

    reference = copy.deepcopy(network)
    inputs = images.clone().requires_grad_()
    logits = reference(inputs)
    (saliency,) = torch.autograd.grad(class_score(logits, labels, score).sum(), inputs, retain_graph=True)
    torch.testing.assert_close(seen[0], saliency, rtol=1e-10, atol=1e-12)
    loss = F.cross_entropy if student_loss == "cross_entropy" else generalised_cross_entropy
    loss(logits, labels).backward()
    for found, expected in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-12)


def test_a_scaled_loss_and_frozen_or_unused_parameters(batch):
    """What GradScaler and accumulation do to the loss reaches the student's gradients, which were there first."""
    images, labels = batch
    pair = pair_of(PAPER)
    pair.student.requires_grad_(False)[-1].requires_grad_(True)
    pair.student.unused = nn.Parameter(torch.ones(1))
    pair(images, labels, unlearning_weight=1.0).loss.backward()
    once = pair.student[-1].weight.grad.clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(pair(images, labels, unlearning_weight=1.0).loss).backward()
    torch.testing.assert_close(pair.student[-1].weight.grad, 9 * once)
    with_gradient = {name for name, p in pair.student.named_parameters() if p.grad is not None}
    assert with_gradient == {"3.weight", "3.bias"}


def test_the_students_graph_is_gone_before_the_teacher_is_called(batch):
    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            saved.add(self)

    saved: weakref.WeakSet[Saved] = weakref.WeakSet()
    held = {}
    pair = pair_of(PAPER)
    for name in ("student", "teacher"):
        getattr(pair, name)[-1].register_forward_hook(lambda *_, name=name: held.update({name: len(saved)}))
    pair.teacher[0].register_forward_pre_hook(lambda *_: held.update(between=len(saved)))
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda box: box.tensor):
        pair(*batch, unlearning_weight=1.0)
    assert held["student"] > 0 and held["teacher"] > 0 and held["between"] == 0
