from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from ule_hf.data import load, waterbirds, waterbirds_compose
from ule_hf.data.verify import count_groups
from ule_hf.data.waterbirds_compose import BACKGROUNDS, compose, draw, is_water_bird, paste
from ule_hf.errors import UleError

METADATA = Path(__file__).parents[2].parent / "shared" / "data" / "metadata" / "waterbirds" / "metadata.csv"
SPECIES = ("001.Black_footed_Albatross", "021.Eastern_Towhee", "009.Brewer_Blackbird", "047.American_Goldfinch")

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def sources(tmp_path):
    """Forty birds as white squares in grey; land is green, water blue."""
    cub, places = tmp_path / "CUB_200_2011", tmp_path / "data_large"
    images, splits = [], []
    for i in range(40):
        name = f"{SPECIES[i % 4]}/bird_{i}.jpg"
        pixels = np.full((20, 30, 3), 90 + i, dtype=np.uint8)
        pixels[5:15, 10:20] = 255
        mask = np.zeros((20, 30), dtype=np.uint8)
        mask[5:15, 10:20] = 255
        for folder, array, path in (("images", pixels, name), ("segmentations", mask, name.replace(".jpg", ".png"))):
            (cub / folder / path).parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(array).save(cub / folder / path)
        images.append(f"{i + 1} {name}\n")
        splits.append(f"{i + 1} {int(i < 30)}\n")
    (cub / "images.txt").write_text("".join(images))
    (cub / "train_test_split.txt").write_text("".join(splits))
    for folders, colour in zip(BACKGROUNDS, ((0, 120, 0), (0, 0, 200)), strict=True):
        for folder in folders:
            (places / folder).mkdir(parents=True)
            for i in range(20):
                PIL.Image.new("RGB", (40 + i, 60), colour).save(places / folder / f"{i:08d}.jpg")
    return cub, places


def test_composed_pictures(sources, tmp_path):
    compose(*sources, tmp_path / "out")
    data = load("waterbirds", data_dir=tmp_path / "out", variant="composed")
    assert [len(data[split]) for split in ("train", "validation", "test")] == [24, 6, 10]
    for rows in data.values():
        for row in rows:
            assert row["label"] == int("Albatross" in row["image_id"] or "Towhee" in row["image_id"])
            assert row["image"].size == row["mask"].size == (30, 20)
            bird, mask = np.asarray(row["image"], dtype=int), np.asarray(row["mask"])
            assert bird[7:13, 12:18].min() > 200  # JPEG
            assert mask[5:15, 10:20].min() == 255
            assert mask.sum() == 255 * 100
            red, green, blue = bird[0, 0]
            assert (blue > green) == bool(row["place"])
            assert red < 60  # nothing of the bird's own grey


def test_proportions(sources):
    table = draw(*sources, seed=0)
    train = table[table["split"] == 0]
    assert (train["place"] == train["y"]).mean() > 0.9
    test = table[table["split"] == 2]
    assert set(test.groupby("y")["place"].sum() - test.groupby("y")["place"].count() / 2) <= {0.0, 0.5, -0.5}
    assert table["place_filename"].is_unique
    assert draw(*sources, seed=0).equals(table)
    assert not draw(*sources, seed=1).equals(table)


def test_given_metadata_are_kept(sources, tmp_path):
    metadata = tmp_path / "metadata.csv"
    draw(*sources, seed=5).to_csv(metadata, index=False)
    compose(*sources, tmp_path / "out", metadata=metadata)
    assert (tmp_path / "out" / "metadata.csv").read_text() == metadata.read_text()


def test_a_stop_loses_nothing(sources, tmp_path, monkeypatch):
    pasted = []

    def on_a_full_disk(*args):
        if len(pasted) >= 15:
            raise OSError(errno.ENOSPC, "No space left on device")
        pasted.append(1)
        save(*args)

    save = PIL.Image.Image.save
    monkeypatch.setattr(PIL.Image.Image, "save", on_a_full_disk)
    with pytest.raises(UleError, match=r"the disk is full: .*out could not be built"):
        compose(*sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    whole = len(list((tmp_path / "out.incomplete" / "masks").rglob("bird_*.png")))
    assert whole > 0

    again = []
    monkeypatch.setattr(PIL.Image.Image, "save", save)
    monkeypatch.setattr(waterbirds_compose, "paste", lambda *args: again.append(1) or paste(*args))
    compose(*sources, tmp_path / "out")
    assert len(again) == 40 - whole
    assert sum(map(len, load("waterbirds", data_dir=tmp_path / "out", variant="x").values())) == 40
    assert not list((tmp_path / "out").rglob("part-*"))


def test_another_composition_does_not_mix(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(waterbirds_compose, "_call", lambda job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compose(*sources, tmp_path / "out", seed=0)
    with pytest.raises(UleError, match="left of another composition"):
        compose(*sources, tmp_path / "out", seed=1)


def test_bad_sources(sources, tmp_path):
    cub, places = sources
    with pytest.raises(UleError, match=r"images\.txt cannot be read"):
        compose(places, places, tmp_path / "out")
    for file in (places / "o" / "ocean").iterdir():
        file.unlink()
    for file in list((places / "l" / "lake" / "natural").iterdir())[5:]:
        file.unlink()
    with pytest.raises(UleError, match="backgrounds are needed of o/ocean, l/lake/natural, 5 there"):
        compose(cub, places, tmp_path / "out")
    row = {"img_filename": f"{SPECIES[0]}/bird_0.jpg", "y": 1, "split": 0, "place": 0}
    for background in ("/o/ocean/1.jpg", "/../../secret.jpg"):
        pd.DataFrame([row | {"place_filename": background}]).to_csv(tmp_path / "m.csv")
        with pytest.raises(UleError, match="1 backgrounds are missing"):
            compose(cub, places, tmp_path / "out", metadata=tmp_path / "m.csv")
    (cub / "segmentations" / SPECIES[0] / "bird_0.png").unlink()
    with pytest.raises(UleError, match=r"file missing .*bird_0\.png"):
        compose(cub, places, tmp_path / "out", metadata=tmp_path / "m.csv")
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_size(sources, tmp_path):
    mask = sources[0] / "segmentations" / SPECIES[0] / "bird_0.png"
    PIL.Image.new("L", (7, 7)).save(mask)
    with pytest.raises(UleError, match=r"bird_0\.png is not of the size"):
        compose(*sources, tmp_path / "out")


def test_half_a_mask_mixes():
    grey = PIL.Image.new("RGB", (2, 2), (100, 100, 100))
    mask = PIL.Image.new("L", (2, 2), 51)  # a fifth
    assert paste(grey, mask, PIL.Image.new("RGB", (5, 9), (200, 0, 50))).getpixel((0, 0)) == (180, 20, 60)


@pytest.mark.skipif(not METADATA.is_file(), reason="needs the shared development data")
def test_labels_are_the_official_ones():
    table = waterbirds.read_metadata(METADATA)
    assert [int(is_water_bird(image)) for image in table["image"]] == table["label"].tolist()


def test_groups_are_those_of_the_table(sources, tmp_path):
    table = draw(*sources, seed=0)
    compose(*sources, tmp_path / "out")
    found = count_groups(load("waterbirds", data_dir=tmp_path / "out", variant="x"))
    expected = table[table["split"] == 0].groupby(["y", "place"]).size()
    for (label, place), size in expected.items():
        assert found["train"][waterbirds.GROUPS[2 * label + place]] == size
