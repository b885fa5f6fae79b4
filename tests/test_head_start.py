"""The head start ends where the student has learned something, at the same step whoever looks."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ule_hf.arguments import parse
from ule_hf.errors import UleError
from ule_hf.experiment import run

QUICK = ["--preset", "exchange", "--num_train_epochs", "3", "--per_device_train_batch_size", "128", "--use_cpu"]


def train(folder, *options: str) -> dict:
    data = ["--dataset", "digits", "--model", "test_resnet", "--image_size", "32", "--learning_rate", "5e-3"]
    run(*parse([*data, *QUICK, *options, "--output_dir", str(folder), "--disable_tqdm", "true"]))
    return json.loads((folder / "results.json").read_text())


def test_it_ends_once_the_student_is_right_and_not_before(tmp_path):
    early = train(tmp_path / "early", "--head_start_accuracy", "0.3")["run"]
    never = train(tmp_path / "never", "--head_start_accuracy", "1.0", "--learning_rate", "1e-9")["run"]
    longer = train(tmp_path / "longer", "--head_start_accuracy", "1.0", "--student_head_start", "2")["run"]
    steps_per_epoch = 9  # 1,117 training images
    assert early["student_learned_at"] == pytest.approx(3 / steps_per_epoch, abs=1e-3)  # with the fourth batch
    assert early["head_start_ended"] == pytest.approx(6 / steps_per_epoch, abs=1e-3)  # and as long again
    assert never["student_learned_at"] is None
    assert never["head_start_ended"] == 0.75  # a quarter of the run, at the latest
    assert longer["head_start_ended"] == 2  # or what is asked for


def test_a_run_resumed_within_or_after_the_head_start_ends_it_at_the_same_step(tmp_path):
    options = ["--head_start_accuracy", "0.6", "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no"]
    options += ["--load_best_model_at_end", "false", "--save_total_limit", "100"]
    whole = train(tmp_path / "whole", *options)
    learned = round(whole["run"]["student_learned_at"] * 9)
    assert 4 <= learned + 1 < whole["run"]["head_start_ended"] * 9
    for step in (2, learned + learned % 2, 20):  # before it has learned, before the teacher joins, after
        resumed = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", resumed / f"checkpoint-{step}")
        again = train(resumed, *options, "--resume_from_checkpoint", "latest")
        assert again["run"]["head_start_ended"] == whole["run"]["head_start_ended"]
        for name in ("model.safetensors", "student/model.safetensors"):
            one, other = load_file(tmp_path / "whole" / name), load_file(resumed / name)
            assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_an_accuracy_that_is_none_is_refused(tmp_path):
    with pytest.raises(UleError, match=r"head_start_accuracy is 90.0; it must lie in \(0, 1\]"):
        train(tmp_path, "--head_start_accuracy", "90")
