"""Numbers that are not finite, dead maps, models that mean nothing, equal seeds."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from transformers import TrainerCallback

from tests.test_trainer import Pictures, assert_same, make_trainer, train_log, weights
from ule_hf.attribution import Norm, attribution_map
from ule_hf.errors import UleError
from ule_hf.pair import StudentTeacher
from ule_hf.unlearning import MapTerm, unlearning_term
from ule_hf.variant import Variant
from ule_hf.watch import SKIPPED_IN_A_ROW, tensor_digests

NOT_SAVING = {"save_strategy": "no", "load_best_model_at_end": False, "num_train_epochs": 1}


class Named(Pictures):
    """Pictures with names, of which some are broken."""

    def __init__(self, broken: dict[int, float], n: int = 16) -> None:
        super().__init__(n)
        for i, value in broken.items():
            self.images[i, 0, 0, 0] = value

    def __getitem__(self, i):
        return {**super().__getitem__(i), "image_id": f"picture-{i}"}


class Steps(TrainerCallback):
    """What every step begins and ends with."""

    def __init__(self) -> None:
        self.before, self.after = [], []

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.before.append(self._all(model, optimizer))

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.after.append(self._all(model, optimizer))

    @staticmethod
    def _all(model, optimizer):
        states = optimizer.state_dict()["state"]
        moments = {f"{i} {n}": v.clone() for i, state in states.items() for n, v in state.items()}
        return {n: v.clone() for n, v in model.state_dict().items()} | moments


@pytest.mark.parametrize("preset", ["paper", "path"])
def test_stops_with_the_images_and_the_checkpoint(tmp_path, preset):
    train = Named({5: float("nan")})
    trainer = make_trainer(tmp_path, train=train, preset=preset, student_head_start=0)
    with pytest.raises(UleError, match=r"the loss is not finite at step \d \(student_loss nan.*images: .*picture-5\b"):
        trainer.train()


@pytest.mark.parametrize("preset", ["paper", "path"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_leaves_nothing_behind(tmp_path, caplog, preset, accumulation):
    """test_resnet has BatchNorm, whose statistics the broken picture would spoil."""
    steps = Steps()
    trainer = make_trainer(
        tmp_path,
        train=Named({5: float("nan")}),
        callbacks=[steps],
        preset=preset,
        student_head_start=0,
        on_nonfinite="skip",
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        **NOT_SAVING,
    )
    trainer.train()
    unchanged = [n for n in range(4) if tensor_digests_equal(steps.before[n], steps.after[n])]
    assert len(unchanged) == 1
    log = train_log(trainer)[-1]
    assert log["skipped_steps"] == 1 and log["loss"] > 0 and log["student_loss"] > 0
    assert f"step {unchanged[0] + 1} is skipped: the loss is not finite" in caplog.text and "picture-5" in caplog.text
    assert all(value.isfinite().all() for value in weights(trainer).values())


def tensor_digests_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_skipping_without_end_stops(tmp_path):
    train = Named(dict.fromkeys(range(4 * (SKIPPED_IN_A_ROW + 1)), float("inf")), n=4 * (SKIPPED_IN_A_ROW + 1))
    trainer = make_trainer(tmp_path, model="test_convnext", train=train, on_nonfinite="skip", **NOT_SAVING)
    with pytest.raises(UleError, match=f"{SKIPPED_IN_A_ROW} steps in a row were skipped: the loss is not finite"):
        trainer.train()


def test_a_gradient_alone_is_skipped_too(tmp_path, caplog):
    class Explode(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                parameter = next(model.student.parameters())
                self.handle = parameter.register_hook(lambda grad: grad * float("inf"))

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.handle.remove()

    trainer = make_trainer(tmp_path, callbacks=[Explode()], on_nonfinite="skip", **NOT_SAVING)
    trainer.train()
    assert "step 2 is skipped: the student's gradient is not finite" in caplog.text
    assert train_log(trainer)[-1]["skipped_steps"] == 1
    assert all(value.isfinite().all() for value in weights(trainer).values())


class BrokenGradient(torch.nn.Module):
    """A linear classifier with finite logits and an input gradient that is not: the root of zero."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(12, 2)
        self.broken = broken

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        return logits + (0 * images).sum((1, 2, 3))[:, None].sqrt() if self.broken else logits


@pytest.mark.parametrize("broken", ["student", "teacher"])
@pytest.mark.parametrize("norm", get_args(Norm))
@pytest.mark.parametrize("term", get_args(MapTerm))
def test_a_map_that_is_not_finite_is_seen_by_every_term(term, norm, broken):
    """It must neither become a dead map, nor a rank, nor vanish in a comparison."""
    variant = Variant(term=term, map_norm=norm, score="predicted")
    pair = StudentTeacher(BrokenGradient(broken == "student"), BrokenGradient(broken == "teacher"), variant).train()
    output = pair(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]), unlearning_weight=1.0)
    assert output.student_loss.isfinite() and output.teacher_loss.isfinite()
    assert not output.loss.isfinite() and not output.unlearning_loss.isfinite()


def test_a_broken_map_is_named(tmp_path):
    trainer = make_trainer(tmp_path)
    pixels = []
    model = trainer.model.student
    model.register_forward_pre_hook(lambda module, args: pixels.append(args[0]))

    def break_gradient(module, args, output):
        output.logits = output.logits + (0 * pixels.pop()).sum().sqrt()
        return output

    model.register_forward_hook(break_gradient)
    with pytest.raises(UleError, match="a saliency map is not finite at step 1"):
        trainer.train()


@pytest.mark.parametrize(("term", "norm"), [*product(get_args(MapTerm), ["max", "sum", "l2"])])
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
def test_dead_maps_have_a_finite_term_and_gradient(term, norm, dead):
    attributions = {name: torch.rand(3, 1, 2, 2).requires_grad_() for name in ("student", "teacher")}
    for name in attributions if dead == "both" else (dead,):
        attributions[name].data[1] = 0
    maps = [attribution_map(a, norm=norm) for a in attributions.values()]
    value = unlearning_term(*maps, term)
    value.sum().backward()
    assert value.isfinite().all() and attributions["teacher"].grad.isfinite().all()


def test_dead_maps_are_told_in_words(tmp_path, caplog):
    trainer = make_trainer(tmp_path, **NOT_SAVING)
    for (
        parameter
    ) in trainer.model.student.timm_model.get_classifier().parameters():  # constant logits do not depend on the image
        parameter.data.zero_()
        parameter.requires_grad_(False)
    trainer.train()
    assert train_log(trainer)[-1]["dead_maps"] == 16
    assert "16 saliency maps were zero everywhere by epoch 1" in caplog.text
    assert "the student has learned nothing: in epoch 1 it is right on 50.0 %" in caplog.text


def test_a_collapsed_teacher_is_told_once(tmp_path, caplog):
    trainer = make_trainer(tmp_path, num_train_epochs=2)
    head = trainer.model.teacher.timm_model.get_classifier()
    head.bias.data[1] += 100
    trainer.train()
    assert caplog.text.count("the teacher has collapsed: at epoch 1 it answers dog to each of 8 images") == 1


def test_models_that_work_are_not_warned_of(tmp_path, caplog):
    make_trainer(tmp_path, model="test_convnext", learning_rate=1e-2, num_train_epochs=4).train()
    assert "learned nothing" not in caplog.text and "collapsed" not in caplog.text


@pytest.mark.parametrize("full", [False, True])
def test_two_runs_with_one_seed_are_equal(tmp_path, full):
    runs = []
    try:
        for name in ("one", "other"):
            trainer = make_trainer(
                tmp_path / name, preset="path", student_head_start=0, full_determinism=full, **NOT_SAVING
            )
            assert torch.are_deterministic_algorithms_enabled() == full
            trainer.train()
            runs.append(weights(trainer))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(*runs)


def test_the_digests_name_the_tensor_that_differs():
    one = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    other = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    other.load_state_dict(one.state_dict())
    assert tensor_digests(one) == tensor_digests(other)
    other[1].running_mean[0] = torch.nextafter(torch.tensor(0.0), torch.tensor(1.0))
    differing = {name for name, digest in tensor_digests(one).items() if tensor_digests(other)[name] != digest}
    assert differing == {"1.running_mean"}
