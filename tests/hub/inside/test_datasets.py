"""A benchmark as a dataset repository: pushed, then read without any code of this package, streaming too."""

from __future__ import annotations

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from tests.data.copies import SIZES, published_of, write_celeba, write_waterbirds
from ule_hf.data import celeba, load, spawrious, urbancars, waterbirds
from ule_hf.data.commands import build_main
from ule_hf.data.verify import label_of


@pytest.fixture
def pushed(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(waterbirds, "PUBLISHED", published_of(waterbirds.GROUPS))
    root = write_waterbirds(tmp_path / "raw")
    command = ["--data_dir", str(root), "--output_dir", str(tmp_path / "out"), "--push_to_hub", "me/birds"]
    assert build_main(waterbirds, "", [*command, "--i_have_the_right_to_publish"]) == 0
    return load("waterbirds", data_dir=root)


def test_what_was_pushed_loads(pushed):
    data = load_dataset("me/birds")
    streamed = load_dataset("me/birds", streaming=True)
    for split, dataset in pushed.items():
        assert data[split].features == dataset.features
        for row, other, once in zip(dataset, data[split], streamed[split], strict=True):
            assert row["image"].tobytes() == other["image"].tobytes() == once["image"].tobytes()
            assert row["image_id"] == other["image_id"] == once["image_id"]
            assert row["group"] == other["group"] == once["group"]
    assert "## Licence" in DatasetCard.load("me/birds").text


@pytest.mark.parametrize("name", ["celeba", "spawrious", "urbancars"])
def test_the_other_scripts_push_what_loads(hub, name, tmp_path, monkeypatch, small_spawrious, small_urbancars):
    monkeypatch.setattr(celeba, "PUBLISHED_SIZES", SIZES)
    (tmp_path / "celeba").mkdir()
    write_celeba(tmp_path / "celeba")
    copies = {"celeba": (celeba, tmp_path / "celeba")}
    copies |= {"spawrious": (spawrious, small_spawrious), "urbancars": (urbancars, small_urbancars)}
    module, root = copies[name]
    command = ["--data_dir", str(root), "--output_dir", str(tmp_path / "out"), "--push_to_hub", f"me/{name}"]
    assert build_main(module, "", [*command, "--i_have_the_right_to_publish"]) == 0
    built, pushed = load(name, data_dir=root), load_dataset(f"me/{name}")
    streamed = load_dataset(f"me/{name}", streaming=True)
    for split, dataset in built.items():
        assert pushed[split]["image_id"][:] == dataset["image_id"][:]
        assert pushed[split].features["group"].names == dataset.features["group"].names
        assert next(iter(streamed[split]))["image"].tobytes() == dataset[0]["image"].tobytes()


def test_the_loader_takes_the_repository(pushed):
    data = load("waterbirds", data_dir="me/birds")
    assert label_of(data) == "waterbirds"
    assert data["test"]["image_id"][:] == pushed["test"]["image_id"][:]


def test_a_token_that_may_not_write_is_one_line(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(waterbirds, "PUBLISHED", published_of(waterbirds.GROUPS))
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    root = write_waterbirds(tmp_path / "raw")
    command = ["--data_dir", str(root), "--output_dir", str(tmp_path / "out"), "--push_to_hub", "me/birds"]
    assert build_main(waterbirds, "", [*command, "--i_have_the_right_to_publish"]) == 2
    assert "me/birds: " in capsys.readouterr().err.strip().splitlines()[-1]
