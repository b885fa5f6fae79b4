"""Every method from data to results, on a tiny model; the claims of the papers are in test_claims.py."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.baselines.bed import pictures, run, tiny_vit
from ule_hf import load_teacher
from ule_hf.errors import UleError
from ule_hf.experiment import METHODS

QUICK = {"num_train_epochs": 2, "evaluate_test_each_epoch": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny_vit(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data():
    return pictures(train=64)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "ule"])
def test_a_run_leaves_an_ordinary_model_and_all_figures(model, data, tmp_path, method):
    run(model, tmp_path, method, data, **QUICK)
    results = json.loads((tmp_path / "results.json").read_text())
    of_last_stage = [entry for entry in results["curve"] if "stage" not in entry]
    assert len(of_last_stage) == (1 if method in ("dfr", "afr") else 2)
    first_stage = {"dfr": [1, 2], "afr": [1, 2], "jtt": [1], "eiil": [1]}
    assert [e["epoch"] for e in results["curve"] if "stage" in e] == first_stage.get(method, [])
    # the model that was kept is the one of the rule that kept it
    assert results["selections"]["worst_class"]["test"]["groups"] == results["model"]["groups"]
    assert results["selections"]["last"]["test"]["groups"] == results["last_epoch"]["model"]["groups"]
    used = {"training": "class", "validation": "class"}
    used |= {"training": "class and group"} if method in ("group_dro", "group_balanced") else {}
    used |= {"validation": "class and group"} if method == "dfr" else {}
    assert results["run"]["method"] == method and results["run"]["labels_used"] == used
    loaded = load_teacher(tmp_path)
    shown = loaded.transform({"image": data["test"][:]["image"], "label": data["test"][:]["label"]})
    with torch.no_grad():
        right = (loaded.classifier(shown["pixel_values"]).logits.argmax(dim=1) == shown["labels"]).float().mean()
    assert right.item() == pytest.approx(results["model"]["test_accuracy"])
    assert METHODS[method].title in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("method", ["group_dro", "lff"])
def test_resuming_equals_no_interruption(model, data, tmp_path, method):
    options = {"num_train_epochs": 3, "save_total_limit": None}
    whole = run(model, tmp_path / "whole", method, data, **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    resumed = run(model, tmp_path / "resumed", method, data, resume_from_checkpoint="latest", **options)
    assert resumed["last_epoch"] == whole["last_epoch"]
    last = ["checkpoint-6/model.safetensors", "checkpoint-6/kept.safetensors"]
    for one, other in ((load_file(tmp_path / folder / name) for folder in ("whole", "resumed")) for name in last):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_finished_first_stage_is_not_trained_again(model, data, tmp_path):
    whole = run(model, tmp_path, "jtt", data, num_train_epochs=2)
    for leftover in ("results.json", "checkpoint-2", "checkpoint-4"):
        path = tmp_path / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    first = tmp_path / "first_stage" / "model.safetensors"
    before = first.stat().st_mtime_ns
    resumed = run(model, tmp_path, "jtt", data, num_train_epochs=2, resume_from_checkpoint="latest")
    assert first.stat().st_mtime_ns == before and resumed["model"] == whole["model"]
    with pytest.raises(UleError, match=r"first_stage is finished.*asked for are num_train_epochs 2\.0 \(was 1\.0\);"):
        run(model, tmp_path, "jtt", data, num_train_epochs=2, jtt_first_epochs=2.0, resume_from_checkpoint="latest")


def test_a_checkpoint_of_another_method_is_refused(model, data, tmp_path):
    run(model, tmp_path, "erm", data, num_train_epochs=1)
    with pytest.raises(UleError, match="is of plain training"):
        run(model, tmp_path, "jtt", data, num_train_epochs=1, resume_from_checkpoint="latest")
    with pytest.raises(UleError, match="already holds a model"):
        run(model, tmp_path, "jtt", data, num_train_epochs=1)


@pytest.mark.parametrize("method", ["group_dro", "group_balanced", "dfr"])
def test_groups_that_are_not_there_are_refused_before_training(model, data, tmp_path, method):
    without = data.remove_columns(["group", "shortcut"])
    for split in without:
        labels = without[split].features["label"]
        without[split] = without[split].add_column("group", without[split]["label"][:], feature=labels)
    with pytest.raises(UleError, match=f"--method {method} needs group labels"):
        run(model, tmp_path / "out", method, without)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [{"lff_decay": 1.0}, {"afr_held_out": 0.0}, {"jtt_upweight": 0.0}])
def test_options_outside_their_range_are_refused(model, tmp_path, option):
    with pytest.raises(UleError, match=next(iter(option))):
        run(model, tmp_path, "erm", **option)


def test_watching_the_test_split_changes_nothing(model, data, tmp_path):
    for watched in (False, True):
        run(model, tmp_path / str(watched), "lff", data, num_train_epochs=2, evaluate_test_each_epoch=watched)
    one, other = (load_file(tmp_path / str(watched) / "model.safetensors") for watched in (False, True))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_first_model_without_an_error_is_said(model, data, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ule_hf.baselines.jtt"):
        easy = pictures(correlation=1.0, train=64)
        run(model, tmp_path, "jtt", easy, jtt_first_epochs=12.0, num_train_epochs=1)
    assert "gets every training image right" in caplog.text
