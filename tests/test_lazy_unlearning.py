"""The term every k-th step and on a part of the batch, through the Trainer."""

from __future__ import annotations

import shutil

import pytest

from tests.test_trainer import Pictures, assert_same, make_trainer, weights
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError
from ule_hf.step_cost import measure_step_cost


def watched(trainer):
    """(optimiser step, what the pair was told) of each of its calls in training."""
    calls = []

    def watch(model, args, options):
        if model.training:
            calls.append((trainer.state.global_step, options["unlearning_weight"], options["unlearning_fraction"]))

    trainer.model.register_forward_pre_hook(watch, with_kwargs=True)
    return calls


def test_every_third_step_has_the_whole_term_and_a_resumed_run_goes_on_in_step(tmp_path):
    options = {
        "unlearning_interval": 3,
        "unlearning_weight": 0.5,
        "unlearning_fraction": 0.5,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "save_total_limit": None,
    }
    whole = make_trainer(tmp_path / "whole", **options)
    calls = watched(whole)
    whole.train()
    assert calls == [(step, 0.0 if step % 3 else 1.5, 0.5) for step in range(6) for _ in range(2)]
    logged = [line["unlearning_weight"] for line in whole.state.log_history if "unlearning_weight" in line]
    assert logged == [0.75, 0.75, 0.0]  # of the two steps of each epoch

    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = make_trainer(tmp_path / "resumed", **options)
    calls = watched(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-2"))
    assert [step for step, weight, _ in calls if weight] == [3, 3]
    assert_same(weights(whole), weights(resumed))


def test_the_reported_cost_is_the_mean_over_the_interval(tmp_path):
    trainer = make_trainer(tmp_path, unlearning_interval=50)
    batch = Pictures(8)
    cost = measure_step_cost(trainer.model, batch.images, batch.labels, trainer.args, repeats=5)["step_cost"]
    trainer.args.unlearning_interval = 1
    assert measure_step_cost(trainer.model, batch.images, batch.labels, trainer.args, repeats=5)["step_cost"] > cost


@pytest.mark.parametrize(
    ("option", "value"), [("unlearning_interval", 0), ("unlearning_fraction", 0.0), ("unlearning_fraction", 1.5)]
)
def test_what_cannot_be_is_refused(tmp_path, option, value):
    with pytest.raises(UleError, match=f"{option} is {value}"):
        ULEConfig(output_dir=str(tmp_path), **{option: value})
