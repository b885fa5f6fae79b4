"""Preset `auto`: the exchange is on trial, its weight falls, and what comes after a failure."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.test_exchange import EXCHANGE, LABELS, LooksAt, Remembers, pictures
from tests.test_head_start import train
from tests.test_trainer import make_trainer
from ule_hf.attribution import log_odds
from ule_hf.balancing import balancing_weights, difficulty_for_the_student, tally
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError
from ule_hf.pair import StudentTeacher, StudentTeacherOutput, generalised_cross_entropy
from ule_hf.unlearning import correlation

LOG_ALL = ["--logging_strategy", "steps", "--logging_steps", "1", "--head_start_accuracy", "0.3"]
FAILS = ["--trial_accuracy", "1.0", "--balance_errors", "true"]


def log_of(folder) -> list[dict]:
    lines = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [line for line in lines if "student_loss" in line]


def same_teacher(one, other) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_weight_falls_to_nothing(tmp_path):
    train(tmp_path, *LOG_ALL)
    weights = [line["unlearning_weight"] for line in log_of(tmp_path) if line["unlearning_weight"]]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(0.3, rel=0.05) and 0 < weights[-1] < 0.3 / len(weights) * 1.1
    steps = -torch.tensor(weights).diff()
    assert torch.allclose(steps, steps.mean(), rtol=1e-3)


def test_a_failed_trial_ends_the_term_for_good_and_a_passed_one_changes_nothing(tmp_path):
    failed = train(tmp_path / "failed", *LOG_ALL, "--trial_accuracy", "1.0")["run"]
    passed = train(tmp_path / "passed", *LOG_ALL, "--trial_accuracy", "0.01")["run"]
    train(tmp_path / "without", *LOG_ALL)
    assert failed["exchange_has_failed"] and not passed["exchange_has_failed"]
    assert failed["trial"].keys() == {"student_turned"} and passed["trial"].keys() == {
        "student_turned",
        "exchanged_accuracy",
    }
    with_term = ["unlearning_loss" in line for line in log_of(tmp_path / "failed")]
    joined = with_term.index(True)
    ended = joined + sum(with_term)
    assert with_term[joined:ended] == [True] * (ended - joined)
    assert (ended - joined) / (len(with_term) - joined) == pytest.approx(1 / 12, abs=0.05)
    assert same_teacher(tmp_path / "passed", tmp_path / "without")


def test_either_question_may_end_it(tmp_path):
    trainer = make_trainer(tmp_path, preset="auto", student_head_start=0.5)
    trainer.train()
    for turned, told, no_place, failed in (
        (0.9, 0.5, False, True),
        (0.5, 0.9, True, True),
        (0.6, 0.6, False, False),
    ):
        trainer._of_trial = torch.tensor([[200 * turned, 200.0], [100 * told, 100.0]])
        assert (trainer.shortcut_has_no_place(), trainer.exchange_has_failed()) == (no_place, failed)
        found = {"student_turned": pytest.approx(turned), "exchanged_accuracy": pytest.approx(told)}
        assert trainer.trial() == found


def test_each_is_asked_when_it_can_answer(tmp_path):
    """The student in the first twelfth of the teacher's training, the teacher from 1/4 to 1/3 of it."""
    trainer = make_trainer(tmp_path, preset="auto", student_head_start=0.5)
    trainer.train()
    trainer.state.epoch, trainer.state.global_step = 1.0, 100
    for progress, told, turned in ((0.08, 0, 0), (0.09, 0, 1), (0.3, 0, 1), (0.34, 1, 1)):
        trainer._progress = lambda progress=progress: progress
        trainer._of_trial = torch.tensor([[0.0, 200.0], [200.0, 200.0]])
        assert trainer.exchange_has_failed() == turned
        trainer._of_trial = torch.tensor([[200.0, 200.0], [0.0, 200.0]])
        assert trainer.exchange_has_failed() == told


def test_a_step_that_is_not_finite_leaves_the_balance_as_it_was(tmp_path):
    trainer = make_trainer(tmp_path, preset="auto", student_head_start=0.5)
    trainer.train()
    trainer._balance.zero_()
    for value, sums in ((2.0, 2.0), (torch.nan, 2.0), (3.0, 5.0)):
        trainer._watch(StudentTeacherOutput(tally=torch.full_like(trainer._balance, value)), None)
        assert torch.equal(trainer._balance, torch.full_like(trainer._balance, sums))


def test_a_run_resumed_within_or_after_the_trial_comes_to_the_same_end(tmp_path):
    options = [*LOG_ALL, *FAILS, "--save_strategy", "steps"]
    options += ["--save_steps", "1", "--eval_strategy", "no", "--save_total_limit", "100"]
    whole = train(tmp_path / "whole", *options)["run"]
    assert whole["exchange_has_failed"] and whole["errors_were_balanced"]
    for step in (8, 9, 10, 20):  # the head start ends with step 7 of 27, the student's trial with step 9
        resumed = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", resumed / f"checkpoint-{step}")
        train(resumed, *options, "--resume_from_checkpoint", "latest")
        assert same_teacher(tmp_path / "whole", resumed)


def test_after_a_failed_trial_the_student_trains_on_and_its_errors_are_balanced(tmp_path):
    for name, options in {"plain": [], "balanced": FAILS}.items():
        train(tmp_path / name, *LOG_ALL, "--trial_accuracy", "1.0", *options)
    plain, balanced = (log_of(tmp_path / name) for name in ("plain", "balanced"))
    ended = max(i for i, line in enumerate(plain) if "unlearning_loss" in line) + 1
    assert 7 < ended < len(plain)
    assert [line["unlearning_weight"] for line in balanced[ended:]] == pytest.approx([0.3] * (len(plain) - ended))
    assert all(0 <= line["unlearning_loss"] <= 1 for line in balanced[ended:])
    assert not any("batches_of_one_class" in line for line in balanced)
    trains = [line.get("student_grad_norm", 0) > 0 for line in balanced]
    assert trains == [True] * 7 + [False] * (ended - 7) + [True] * (len(plain) - ended)
    same = [one["teacher_loss"] == other["teacher_loss"] for one, other in zip(plain[7:], balanced[7:], strict=True)]
    assert all(same[: ended - 7]) and not any(same[ended - 7 :])


@pytest.mark.parametrize(("learned_at", "listens"), [(0.5, True), (1.0, True), (1.2, False), (torch.inf, False)])
def test_a_student_that_may_know_its_images_by_heart_is_not_listened_to(tmp_path, learned_at, listens):
    trainer = make_trainer(tmp_path, preset="auto", student_head_start=0.5)
    trainer.train()
    trainer._of_trial = torch.tensor([[0.0, 200.0], [0.0, 0.0]])
    trainer.student_learned_at = torch.tensor(learned_at, dtype=torch.float64)
    assert trainer.exchange_has_failed()
    assert trainer.is_balancing() == listens


@given(st.integers(1, 30), st.integers(2, 4), st.integers(0, 2**31))
def test_right_and_wrong_images_of_each_class_weigh_alike(samples, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    values = torch.rand(samples, generator=generator) + 0.1
    sums = tally(logits, labels, values)
    assert sums[0].sum() == samples and sums[1].sum() == pytest.approx(values.sum().item(), rel=1e-5)
    weights = balancing_weights(logits, labels, values, sums)
    right = logits.argmax(dim=1) == labels
    sets = [(labels == k) & (right == r) for k in range(classes) for r in (False, True)]
    sets = [one for one in sets if one.any()]
    for one in sets:
        assert weights[one].sum() == pytest.approx(samples / len(sets), rel=1e-4)
        torch.testing.assert_close(weights[one] / weights[one].sum(), values[one] / values[one].sum())
    assert torch.equal(balancing_weights(logits, labels, values, sums, "constant"), torch.ones(samples))
    assert torch.equal(balancing_weights(logits, labels, values, sums, "shuffled"), weights.roll(-1))


def test_what_came_before_counts_in_the_weights():
    logits, labels, ones = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), torch.ones(2)
    before = torch.tensor([[0.0, 7.0], [0.0, 0.0]]).expand(2, 2, 2)
    weights = balancing_weights(logits, labels, ones, before + tally(logits, labels))
    assert weights.tolist() == pytest.approx([9 / 16, 9 / 2])  # eight right, one wrong


@given(st.floats(-60, 60), st.floats(-60, 60))
def test_the_difficulty_is_large_where_the_student_alone_is_misled(of_student, of_teacher):
    student, teacher = (torch.tensor([[logit, 0.0]]) for logit in (of_student, of_teacher))
    difficulty = difficulty_for_the_student(student, teacher, torch.tensor([0])).item()
    losses = [F.softplus(torch.tensor(-logit)).item() for logit in (of_student, of_teacher)]
    assert 0 <= difficulty <= 1
    guess = math.log(2)
    assert difficulty == pytest.approx((losses[0] + guess) / (sum(losses) + 2 * guess), rel=1e-4)


def test_the_teachers_loss_is_balanced_in_training_alone():
    pair = StudentTeacher(LooksAt(0, 1), Remembers(), EXCHANGE)
    images, labels = pictures(), LABELS.roll(1)  # the student is wrong about some
    before = torch.tensor([[[1.0, 9.0], [2.0, 8.0]], [[0.7, 4.0], [1.2, 3.0]]])
    for module in (pair.train(), pair.eval()):
        output = module(images, labels, unlearning_weight=0.5, train_student=False, balance=before)
        of_student, of_teacher = pair.student(images), pair.teacher.linear(images.flatten(1))
        losses = F.cross_entropy(of_teacher, labels, reduction="none")
        if module.training:
            difficulty = difficulty_for_the_student(of_student, of_teacher, labels)
            of_batch = tally(of_student, labels, difficulty)
            losses = losses * balancing_weights(of_student, labels, difficulty, before + of_batch)
            assert torch.equal(output.tally, of_batch)
            torch.testing.assert_close(output.student_loss, generalised_cross_entropy(of_student, labels, 0.7))
            term = correlation(log_odds(of_student, labels), log_odds(of_teacher, labels), labels)
            torch.testing.assert_close(output.unlearning_loss, term)
            torch.testing.assert_close(output.loss, output.student_loss + losses.mean() + 0.5 * term)
        torch.testing.assert_close(output.teacher_loss, losses.mean())


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "paper", "trial_accuracy": 0.55},
        {"trial_accuracy": 60.0},
    ],
)
def test_a_trial_of_nothing_is_refused(tmp_path, options):
    with pytest.raises(UleError, match="it must lie in"):
        ULEConfig(str(tmp_path), use_cpu=True, **options)


def test_a_balance_that_would_never_begin_is_refused(tmp_path):
    with pytest.raises(UleError, match="balance_errors needs a trial_accuracy"):
        ULEConfig(str(tmp_path), use_cpu=True, preset="exchange", balance_errors=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"load_best_model_at_end": False, "balance_errors": True, "freeze_student": True}),
        ({"metric_for_best_model": "worst_group_accuracy"}, {"load_best_model_at_end": True}),
        ({"preset": "paper"}, {"load_best_model_at_end": True, "trial_accuracy": None, "freeze_student": False}),
        ({"student_head_start": 0.0}, {"freeze_student": False, "trial_accuracy": 0.55}),
        ({"preset": "exchange"}, {"trial_accuracy": None, "balance_errors": False}),
        ({"term": "overlap"}, {"trial_accuracy": None, "balance_errors": False, "load_best_model_at_end": True}),
        ({"num_train_epochs": 2}, {"student_head_start": 0.5}),
        ({"num_train_epochs": 40}, {"student_head_start": 2.0}),
        ({"num_train_epochs": 2, "preset": "path", "student_head_start": 1.0}, {"student_head_start": 1.0}),
    ],
)
def test_what_a_preset_says_fits_the_rest(tmp_path, options, expected):
    args = ULEConfig(str(tmp_path), use_cpu=True, **options)
    assert {name: getattr(args, name) for name in expected} == expected
