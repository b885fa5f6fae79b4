from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from tests.data.urbancars_sources import made, write_sources
from ule_hf.data import spawrious, urbancars
from ule_hf.data.commands import build_main, verify_main

SCRIPTS = Path(__file__).parents[2] / "dataset_scripts"
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("urbancars_script", SCRIPTS / "urbancars.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_urbancars_from_sources_to_parquet(tmp_path, monkeypatch, capsys, script, segmenter):
    monkeypatch.setattr(urbancars, "IMAGES_PER_CLASS", {"train": 20, "validation": 4, "test": 4})
    monkeypatch.setattr(urbancars, "PUBLISHED", {c: urbancars._published(c) for c in urbancars.PUBLISHED})
    monkeypatch.setattr(urbancars, "IMAGE_SIZE", (64, 64))
    sources = write_sources(tmp_path, 16, made())
    folders = {name: str(folder) for name, folder in vars(sources).items() if isinstance(folder, Path)}
    options = [word for name, folder in folders.items() for word in (f"--{name}", folder)]
    images, parquet = str(tmp_path / "images"), str(tmp_path / "parquet")

    mask = sources.masks / sources.cars()[0].mask_file
    mask.unlink()
    segmenter.model.save_pretrained(tmp_path / "maskformer")
    segmenter.processor.save_pretrained(tmp_path / "maskformer")
    of_cars = [word for name in ("lists", "stanford_cars", "masks") for word in (f"--{name}", folders[name])]
    assert script(["segment", *of_cars, "--segmenter", str(tmp_path / "maskformer")]) == 0
    assert script(["segment", *of_cars, "--segmenter", str(tmp_path / "nothing")]) == 2

    assert script(["compose", *options, "--output_dir", images]) == 0
    assert script(["--data_dir", images, "--output_dir", parquet]) == 0
    assert verify_main({"urbancars": urbancars}, ["urbancars", "--data_dir", parquet]) == 0
    data = load_dataset(parquet)
    assert sum(len(split) for split in data.values()) == 58
    assert data["train"].features["group"].names[7] == "country, bg=country, co_occur_obj=country"
    assert np.asarray(data["test"][0]["mask"]).any()
    assert "Whac-A-Mole" in Path(parquet, "README.md").read_text()

    capsys.readouterr()
    assert script(["compose", *options, "--output_dir", images]) == 2
    assert "is there already" in capsys.readouterr().err
    assert script(["--data_dir", images, "--output_dir", parquet + "2", "--push_to_hub", "me/urbancars"]) == 2
    assert "--i_have_the_right_to_publish" in capsys.readouterr().err


def test_spawrious_as_parquet_and_verified(small_spawrious, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spawrious, "IMAGE_SIZE", (2, 2))
    combination = ["--combination", "o2o_medium"]
    source, parquet = ["--data_dir", str(small_spawrious)], tmp_path / "parquet"
    assert verify_main({"spawrious": spawrious}, ["spawrious", *source, *combination]) == 0
    assert build_main(spawrious, "", [*source, *combination, "--output_dir", str(parquet)]) == 0
    data = spawrious.load(parquet, "o2o_medium")
    assert data["train"].features["environment"].names == list(spawrious.ENVIRONMENTS)
    capsys.readouterr()
    assert verify_main({"spawrious": spawrious}, ["spawrious", "--data_dir", str(parquet)]) == 2
    assert "not the published spawrious o2o_hard" in capsys.readouterr().err

    corrupt = small_spawrious / "1" / "beach" / "labrador" / "beach_labrador_4.png"
    corrupt.write_bytes(b"x")
    # the cache of rows may stay, but no picture is taken for good that is not
    assert verify_main({"spawrious": spawrious}, ["spawrious", *source, *combination]) == 2
    assert "beach_labrador_4" in capsys.readouterr().err
    skip = [*combination, "--skip_bad_images"]
    assert verify_main({"spawrious": spawrious}, ["spawrious", *source, *skip]) == 2
    assert "without 1 unreadable images" in capsys.readouterr().err
    assert build_main(spawrious, "", [*source, *skip, "--output_dir", str(tmp_path / "skipped")]) == 0
    assert "without 1 unreadable images" in (tmp_path / "skipped" / "README.md").read_text()
