"""Spawrious, UrbanCars and Dominoes from the recipe to results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.test_dominoes import write_images, write_npz
from tests.data.test_urbancars import write_urbancars
from ule_hf.arguments import parse
from ule_hf.data.verify import label_of
from ule_hf.experiment import load_data, run
from ule_hf.metrics import shortcut_gaps

RECIPES = Path(__file__).parents[2] / "recipes"
QUICK = ["--model", "test_resnet", "--image_size", "32", "--use_cpu", "--report_step_cost", "false"]
QUICK += ["--dataloader_num_workers", "0", "--disable_tqdm", "true"]
pytestmark = pytest.mark.usefixtures("cache")


def results_of(tmp_path, *options):
    run(*parse([*map(str, options), *QUICK, "--output_dir", str(tmp_path / "out")], recipes=RECIPES))
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_urbancars(tmp_path, capsys):
    root = write_urbancars(tmp_path / "u", {"train": 80, "validation": 8, "test": 8})
    options = ["--dataset", "urbancars", "--data_dir", root, "--variant", "tiny", "--num_train_epochs", 1]
    results = results_of(tmp_path, *options, "--per_device_train_batch_size", 40)
    assert results["run"]["dataset"] == "urbancars 0.95, variant tiny (not the published benchmark)"
    assert results["run"]["selected_by"] == "worst_group_accuracy"
    for figures in (results["teacher"], results["student"], results["last_epoch"]["teacher"]):
        gaps = shortcut_gaps([group["accuracy"] for group in figures["groups"].values()])
        assert len(figures["groups"]) == 8
        assert {name: figures[f"test_{name}"] for name in gaps} == pytest.approx(gaps)
    assert "BG+CoObj gap" in capsys.readouterr().out


def test_spawrious(tmp_path, small_spawrious):
    options = ["--dataset", "spawrious", "--data_dir", small_spawrious, "--combination", "m2m_easy", "--max_steps", 1]
    results = results_of(tmp_path, *options)
    assert results["run"]["dataset"] == "spawrious m2m_easy"
    for model in ("teacher", "student"):
        assert results[model]["test_average_ood_accuracy"] == results[model]["test_accuracy"]
        assert len(results[model]["groups"]) == 8


def test_dominoes(tmp_path):
    write_npz(tmp_path / "mnist")
    write_images(tmp_path / "cifar10")
    command = ["--dataset", "dominoes", "--data_dir", str(tmp_path), "--correlation", "1.0"]
    data = load_data(parse(command)[0], seed=3)
    assert data["train"]["label"][:] == data["train"]["shortcut"][:]
    assert label_of(data) == ""


@pytest.mark.parametrize("name", ["spawrious", "urbancars"])
def test_recipes(name):
    data_args, model_args, args, _ = parse(["--dataset", name, "--use_cpu"], recipes=RECIPES)
    assert (data_args.augmentation, model_args.model) == ("published", "timm/resnet50.tv_in1k")
    if name == "spawrious":
        assert (args.learning_rate, args.weight_decay, args.max_steps) == (5e-5, 0, 5001)
    else:
        assert (args.learning_rate, args.weight_decay, args.num_train_epochs) == (1e-3, 1e-4, 300)
        assert (args.optim_args, args.metric_for_best_model) == ("momentum=0.9", "worst_group_accuracy")
