"""Preset `auto`: the exchange is on trial, its weight falls, and what comes after a failure."""

from __future__ import annotations

import json
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
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError
from ule_hf.pair import StudentTeacher, error_weights

LOG_ALL = ["--logging_strategy", "steps", "--logging_steps", "1", "--head_start_accuracy", "0.3"]


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
    assert failed["trial"].keys() == {"student_turned", "exchanged_accuracy"} == passed["trial"].keys()
    with_term = ["unlearning_loss" in line for line in log_of(tmp_path / "failed")]
    joined = with_term.index(True)
    ended = joined + sum(with_term)
    assert with_term[joined:ended] == [True] * (ended - joined)
    assert (ended - joined) / (len(with_term) - joined) == pytest.approx(1 / 3, abs=0.05)
    assert same_teacher(tmp_path / "passed", tmp_path / "without")


def test_either_question_may_end_it(tmp_path):
    trainer = make_trainer(tmp_path, preset="auto", student_head_start=0.5)
    trainer.train()
    for told, turned, failed in ((0.5, 0.9, True), (0.9, 0.5, True), (0.6, 0.6, False)):
        trainer._of_trial = 200 * torch.tensor([told, turned, 1.0])
        assert trainer.exchange_has_failed() == failed
        found = {"student_turned": pytest.approx(turned), "exchanged_accuracy": pytest.approx(told)}
        assert trainer.trial() == found


def test_a_run_resumed_within_or_after_the_trial_comes_to_the_same_end(tmp_path):
    options = [*LOG_ALL, "--trial_accuracy", "1.0", "--error_weighting", "2", "--save_strategy", "steps"]
    options += ["--save_steps", "1", "--eval_strategy", "no", "--save_total_limit", "100"]
    assert train(tmp_path / "whole", *options)["run"]["exchange_has_failed"]
    for step in (10, 20):  # the head start ends with step 4 of 27, and the trial is watched from step 9 to step 11
        resumed = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", resumed / f"checkpoint-{step}")
        train(resumed, *options, "--resume_from_checkpoint", "latest")
        assert same_teacher(tmp_path / "whole", resumed)


def test_errors_weigh_more_only_once_the_exchange_has_failed(tmp_path):
    for name, options in {"plain": ["0"], "weighted": ["2"]}.items():
        train(tmp_path / name, *LOG_ALL, "--trial_accuracy", "1.0", "--error_weighting", *options)
    plain, weighted = (log_of(tmp_path / name) for name in ("plain", "weighted"))
    same = [one["loss"] == other["loss"] for one, other in zip(plain, weighted, strict=True)]
    ended = max(i for i, line in enumerate(plain) if "unlearning_loss" in line) + 1
    assert all(same[:ended]) and not any(same[ended:])


@given(st.integers(2, 9), st.floats(0.1, 5), st.integers(0, 2**31))
def test_the_weights_of_errors(samples, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, 3, generator=generator)
    labels = torch.randint(3, (samples,), generator=generator)
    weights = error_weights(logits, labels, exponent)
    assert weights.mean() == pytest.approx(1, abs=1e-4)
    right = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    assert torch.equal(weights[right.argsort()], weights.sort(descending=True).values)
    assert torch.equal(error_weights(logits, labels, exponent, "constant"), torch.ones(samples))
    assert torch.equal(error_weights(logits, labels, exponent, "shuffled")[:-1], weights[1:])


def test_the_teachers_loss_is_weighted_in_training_alone():
    pair = StudentTeacher(LooksAt(0, 1), Remembers(), EXCHANGE)
    images, labels = pictures(), LABELS.roll(1)  # the student is wrong about some
    for module in (pair.train(), pair.eval()):
        output = module(images, labels, train_student=False, error_weighting=2.0)
        losses = F.cross_entropy(pair.teacher.linear(images.flatten(1)), labels, reduction="none")
        weights = error_weights(pair.student(images), labels, 2.0) if module.training else torch.ones(len(labels))
        torch.testing.assert_close(output.teacher_loss, (weights * losses).mean())


@pytest.mark.parametrize("options", [{"preset": "paper", "trial_accuracy": 0.55}, {"trial_accuracy": 60.0}])
def test_a_trial_of_nothing_is_refused(tmp_path, options):
    with pytest.raises(UleError, match="it must lie in"):
        ULEConfig(str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"load_best_model_at_end": False, "trial_accuracy": 0.55, "freeze_student": True}),
        ({"metric_for_best_model": "worst_group_accuracy"}, {"load_best_model_at_end": True}),
        ({"preset": "paper"}, {"load_best_model_at_end": True, "trial_accuracy": None, "freeze_student": False}),
        ({"student_head_start": 0.0}, {"freeze_student": False, "trial_accuracy": 0.55}),
        ({"term": "overlap"}, {"trial_accuracy": None, "load_best_model_at_end": True}),
        ({"num_train_epochs": 2}, {"student_head_start": 0.5}),
        ({"num_train_epochs": 40}, {"student_head_start": 2.0}),
        ({"num_train_epochs": 2, "preset": "path", "student_head_start": 1.0}, {"student_head_start": 1.0}),
    ],
)
def test_what_a_preset_says_fits_the_rest(tmp_path, options, expected):
    args = ULEConfig(str(tmp_path), use_cpu=True, **options)
    assert {name: getattr(args, name) for name in expected} == expected
