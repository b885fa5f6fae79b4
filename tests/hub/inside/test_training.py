"""The Trainer pushes while it trains: at each strategy, and to a Hub that fails, is slow, or rejects the card."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.hub.server import OWNER, READER
from tests.test_trainer import make_trainer
from ule_hf import UleError, load_student, load_teacher
from ule_hf.card import CardFacts
from ule_hf.publishing import PublishingTrainer

EVERY_FILE = {"README.md", "card.json", "config.json", "model.safetensors", "ule_config.json"}


def publishing(folder: Path, **options):
    return make_trainer(
        folder, **{"push_to_hub": True, "hub_model_id": "me/teacher", "hub_always_push": True, **options}
    )


def same_weights(name: str, folder: Path) -> bool:
    pushed, here = load_teacher(name).classifier.timm_model.state_dict(), load_file(folder / "model.safetensors")
    return all(torch.equal(pushed[key], here[key]) for key in here)


def messages(hub) -> list[str]:
    return hub.repositories["model", "me/teacher"].messages[1:]


def test_every_save_is_a_teacher_that_loads(hub, tmp_path):
    trainer = publishing(tmp_path)
    trainer.train()
    assert messages(hub) == ["Training in progress, step 4", "Training in progress, step 8"]
    assert hub.files("me/teacher").keys() == EVERY_FILE
    assert same_weights("me/teacher", tmp_path / "checkpoint-8")
    assert load_teacher("me/teacher").results is None
    assert b"not been evaluated yet" in hub.files("me/teacher")["README.md"]
    trainer.push_to_hub(license="mit")
    assert messages(hub)[-1] == "End of training"
    assert same_weights("me/teacher", tmp_path) and b"license: mit" in hub.files("me/teacher")["README.md"]


def test_a_push_while_training_has_no_results_of_an_earlier_run_but_its_pictures(hub, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "saliency").mkdir()
    (tmp_path / "saliency" / "epoch 1.png").write_bytes(b"a picture")
    publishing(tmp_path).train()
    assert hub.files("me/teacher").keys() == {*EVERY_FILE, "saliency/epoch 1.png"}
    assert b"saliency/epoch 1.png" in hub.files("me/teacher")["README.md"]


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [("end", set()), ("checkpoint", {"last-checkpoint"}), ("all_checkpoints", {"checkpoint-4", "checkpoint-8"})],
)
def test_strategies(hub, tmp_path, strategy, folders):
    trainer = publishing(tmp_path, hub_strategy=strategy)
    trainer.train()
    trainer.push_to_hub()
    files = hub.files("me/teacher")
    assert {name for name in files if "/" not in name} == EVERY_FILE
    assert {name.split("/")[0] for name in files if "/" in name} == folders
    for folder in folders:  # whole, to resume from
        assert {f"{folder}/optimizer.pt", f"{folder}/student/model.safetensors"} <= files.keys()


def test_the_student_is_pushed_when_asked(hub, tmp_path):
    trainer = publishing(tmp_path, hub_push_student=True, hub_private_repo=True, hub_revision="seed-3")
    trainer.train()
    assert hub.repositories["model", "me/teacher"].private and hub.files("me/teacher") == {}
    student = load_student("me/teacher", revision="seed-3").classifier.timm_model.state_dict()
    expected = load_file(tmp_path / "checkpoint-8" / "student" / "model.safetensors")
    assert all(torch.equal(student[name], expected[name]) for name in expected)


def test_no_secret_is_pushed_nor_written(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    trainer = publishing(tmp_path, hub_token=OWNER, hub_strategy="all_checkpoints")
    trainer.train()
    trainer.push_to_hub()
    assert len(messages(hub)) >= 2
    for name, content in hub.files("me/teacher").items():
        assert OWNER.encode() not in content, name
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or OWNER.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_token_on_the_command_line_is_not_recorded(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    from tests.test_recipe import QUICK, train

    options = ["--push_to_hub", "--hub_token", OWNER, "--hub_model_id", "me/digits", "--hub_strategy", "end"]
    assert train(["--dataset", "digits", "--output_dir", str(tmp_path), *QUICK, *options]) == 0
    assert load_teacher("me/digits").results["run"]["command"].count("<HUB_TOKEN>") == 1
    for name, content in hub.files("me/digits").items():
        assert OWNER.encode() not in content, name


def test_a_failed_push_does_not_end_training_and_is_made_up_for(hub, tmp_path, caplog):
    trainer = publishing(tmp_path)
    hub.fault = lambda method, path: (500, {"error": "out of order"}) if "/commit/" in path else None
    finish = PublishingTrainer._finish_current_push

    def mend_at_the_end(self):
        self._wait_for_push()
        hub.fault = lambda method, path: None
        finish(self)

    trainer._finish_current_push = mend_at_the_end.__get__(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 8
    assert [r.levelname for r in caplog.records if "out of order" in r.message] == ["WARNING"] * 2
    assert messages(hub) == ["End of training, step 8"]
    assert same_weights("me/teacher", tmp_path / "checkpoint-8")


def test_a_hub_that_stays_away_costs_nothing_but_the_push(hub, tmp_path, caplog):
    hub.fault = lambda method, path: (503, {"error": "maintenance"})
    with caplog.at_level(logging.WARNING):
        trainer = publishing(tmp_path)
        trainer.train()
    assert trainer.state.global_step == 8 and "maintenance" in caplog.text
    with pytest.raises(UleError, match="maintenance"):
        trainer.push_to_hub()
    hub.fault = lambda method, path: None
    trainer.push_to_hub()
    assert same_weights("me/teacher", tmp_path)


@pytest.mark.slow
def test_the_recipe_ends_well_though_the_push_failed(hub, tmp_path, caplog):
    from tests.test_recipe import QUICK, train

    hub.fault = lambda method, path: (503, {"error": "maintenance"})
    with caplog.at_level(logging.WARNING):
        options = ["--push_to_hub", "--hub_model_id", "me/digits", "--output_dir", str(tmp_path / "out")]
        assert train(["--dataset", "digits", *QUICK, *options]) == 0
    assert "push it later: ule-hf push" in caplog.text
    assert json.loads((tmp_path / "out" / "results.json").read_text())["teacher"]


def test_a_slow_hub_does_not_hold_up_training(hub, tmp_path):
    trained = threading.Event()

    def wait(method, path):
        if "/commit/" in path:
            assert trained.wait(60)

    hub.fault = wait
    trainer = publishing(tmp_path, hub_always_push=False)
    finish = PublishingTrainer._finish_current_push

    def note_the_end(self):
        trained.set()
        finish(self)

    trainer._finish_current_push = note_the_end.__get__(trainer)
    trainer.train()
    # the second epoch's push was skipped while the first one's went on, and made up for at the end
    assert messages(hub) == ["Training in progress, step 4", "End of training, step 8"]
    assert same_weights("me/teacher", tmp_path / "checkpoint-8")


def test_what_would_fail_at_every_push_is_refused_before_training(hub, tmp_path, monkeypatch):
    def build(**options):
        return publishing(tmp_path, **options)

    with pytest.raises(UleError, match="is no Hub id"):
        build(hub_model_id="not/an/id")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(UleError, match="does not accept your token"):
        build()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UleError, match="no token of the Hub"):
        build()
    assert not hub.repositories
    monkeypatch.setenv("HF_TOKEN", OWNER)
    build()
    monkeypatch.setenv("HF_TOKEN", READER)  # of a repository that is there, too
    with pytest.raises(UleError, match="your token has no right"):
        build()


def test_a_card_that_the_hub_rejects(hub, tmp_path, caplog):
    trainer = publishing(tmp_path)
    trainer.card = CardFacts(license="of-my-own")  # past the check that is made before training
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 8 and '"license" must be one of' in caplog.text
    assert hub.files("me/teacher") == {}
    trainer.push_to_hub(license="mit")
    assert same_weights("me/teacher", tmp_path)


@pytest.mark.slow
def test_of_two_processes_one_pushes(hub, tmp_path):
    from tests.test_recipe import QUICK, REPOSITORY

    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["recipes/train.py", "--dataset", "digits", "--output_dir", str(tmp_path), *QUICK]
    command += ["--push_to_hub", "--hub_model_id", "me/digits", "--hub_always_push", "true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    pushed = hub.repositories["model", "me/digits"].messages
    assert len(pushed) == len(set(pushed)) and pushed[-1] == "End of training"
    assert load_teacher("me/digits").results["run"]["processes"] == 2
