"""Benchmarks as the recipe loads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Image

from tests.data.copies import SIZES, published_of, write_celeba, write_waterbirds
from ule_hf.arguments import parse
from ule_hf.data import celeba, load, waterbirds
from ule_hf.data.verify import label_of
from ule_hf.errors import UleError
from ule_hf.experiment import load_data, run

RECIPES = Path(__file__).parents[2] / "recipes"

pytestmark = pytest.mark.usefixtures("cache")


def loaded(*argv):
    return load_data(parse(list(map(str, argv)), recipes=RECIPES)[0], seed=0)


def test_waterbirds(tmp_path, monkeypatch):
    monkeypatch.setattr(waterbirds, "PUBLISHED", published_of(waterbirds.GROUPS))
    data = loaded("--dataset", "waterbirds", "--data_dir", write_waterbirds(tmp_path / "w", masks=True))
    assert label_of(data) == "waterbirds"
    assert "mask" not in data["train"].features  # it would be decoded for every batch
    data = loaded("--dataset", "waterbirds", "--data_dir", tmp_path / "w", "--variant", "mine", "--cache_resized", 4)
    assert "variant mine" in label_of(data)
    assert data["test"][0]["image"].size == (5, 4)
    raw = data["test"].cast_column("image", Image(decode=False))[0]["image"]["bytes"]
    assert raw[:2] == b"BM"


def test_celeba(tmp_path, monkeypatch):
    monkeypatch.setattr(celeba, "PUBLISHED_SIZES", SIZES)
    root = write_celeba(tmp_path / "c")
    assert label_of(loaded("--dataset", "celeba", "--data_dir", root)) == "celeba"
    data = loaded("--dataset", "celeba", "--data_dir", root, "--target", "Male", "--attribute", "Young")
    assert data["train"].features["group"].names[3] == "Male, Young=yes"
    (root / "img_align_celeba" / "000002.jpg").write_bytes(b"")
    with pytest.raises(UleError, match="unreadable image"):
        loaded("--dataset", "celeba", "--data_dir", root, "--target", "Young", "--attribute", "Male")
    data = loaded("--dataset", "celeba", "--data_dir", root, "--skip_bad_images")
    assert "without 1 unreadable images" in label_of(data)


def test_an_option_of_another_dataset():
    with pytest.raises(UleError, match="'urbancars' has no option skip_bad_images"):
        loaded("--dataset", "urbancars", "--skip_bad_images")
    with pytest.raises(UleError, match="'waterbirds' has no option target"):
        load("waterbirds", target="Male")


@pytest.mark.parametrize(("name", "weight_decay", "batch"), [("waterbirds", 1e-3, 32), ("celeba", 1e-4, 128)])
def test_recipes(name, weight_decay, batch):
    data_args, _, args, _ = parse(["--dataset", name, "--use_cpu"], recipes=RECIPES)
    assert data_args.augmentation == "published"
    assert (args.learning_rate, args.weight_decay, args.per_device_train_batch_size) == (1e-3, weight_decay, batch)
    assert (args.optim, args.optim_args) == ("sgd", "momentum=0.9")


def test_results_and_card_name_the_variant(tmp_path):
    root = write_waterbirds(tmp_path / "w")
    command = ["--dataset", "waterbirds", "--data_dir", str(root), "--output_dir", str(tmp_path / "out")]
    quick = ["--model", "test_resnet", "--image_size", "32", "--num_train_epochs", "1", "--use_cpu"]
    quick += ["--report_step_cost", "false", "--dataloader_num_workers", "0", "--per_device_train_batch_size", "5"]
    with pytest.raises(UleError, match="not the published waterbirds"):
        run(*parse([*command, *quick], recipes=RECIPES))
    assert not (tmp_path / "out").exists()
    run(*parse([*command, *quick, "--variant", "tiny"], recipes=RECIPES))
    label = "waterbirds, variant tiny (not the published benchmark)"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["run"]["dataset"] == label
    assert results["train_group_sizes"] == dict(zip(waterbirds.GROUPS, SIZES["train"], strict=True))
    assert label in (tmp_path / "out" / "README.md").read_text()
