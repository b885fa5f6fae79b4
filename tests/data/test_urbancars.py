from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import load_dataset

from ule_hf.data import urbancars
from ule_hf.data.publish import write_folder
from ule_hf.data.urbancars import CARD, FOLDERS, LABELS, PUBLISHED, folder_of, group_sizes
from ule_hf.data.verify import count_groups, label_of
from ule_hf.errors import UleError

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "urbancars_like"
SIZES = {"train": 80, "validation": 8, "test": 8}

pytestmark = pytest.mark.usefixtures("cache")


def write_urbancars(root, images_per_class):
    """The published layout, both correlations, with noise for images."""
    rng = np.random.default_rng(0)
    folders = [("0.95", "train", 0.95), ("0.5", "train", 0.5), ("0.5", "validation", 0.5), ("0.5", "test", 0.5)]
    for name, split, correlation in folders:
        sizes = group_sizes(images_per_class[split], correlation).values()
        for (label, bg, co), size in zip(product(LABELS, repeat=3), sizes, strict=True):
            folder = root / folder_of(name) / FOLDERS[split] / f"obj-{label}_bg-{bg}_co_occur_obj-{co}"
            folder.mkdir(parents=True)
            for i in range(size):
                PIL.Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).save(folder / f"{i:03d}.jpg")
                PIL.Image.new("L", (4, 4), 255).save(folder / f"{i:03d}_mask.png")
                PIL.Image.new("L", (4, 4), 0).save(folder / f"{i:03d}_co_occur_obj_mask.png")
    return root


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A copy with 80 + 8 + 8 images of each class, and a benchmark of that size."""
    monkeypatch.setattr(urbancars, "IMAGES_PER_CLASS", SIZES)
    monkeypatch.setattr(urbancars, "IMAGE_SIZE", (4, 4))
    monkeypatch.setattr(urbancars, "PUBLISHED", {c: urbancars._published(c) for c in PUBLISHED})
    return write_urbancars(tmp_path, SIZES)


def group_folder(root, label="urban", bg="urban", co="urban"):
    return root / "bg-0.95_co_occur_obj-0.95" / "train" / f"obj-{label}_bg-{bg}_co_occur_obj-{co}"


def test_published_counts_are_those_of_the_generator():
    aligned, one_off, none = 3610, 190, 10
    sizes = [aligned, one_off, one_off, none, none, one_off, one_off, aligned]
    assert list(PUBLISHED["0.95"]["train"].values()) == sizes
    assert list(PUBLISHED["0.5"]["train"].values()) == [1000] * 8
    # 36.1, 1.9 and 0.1: rounded down, at least one
    assert list(group_sizes(40, 0.95).values())[:4] == [36, 1, 1, 1]
    for correlation in PUBLISHED:
        for split in ("validation", "test"):
            assert list(PUBLISHED[correlation][split].values()) == [125] * 8


@pytest.mark.parametrize("correlation", ["0.95", 0.95, 0.5])
def test_loads_both_correlations(small, correlation):
    data = urbancars.load(small, correlation)
    assert label_of(data) == f"urbancars {correlation}"
    assert count_groups(data)["test"] == dict.fromkeys(urbancars.GROUPS, 2)
    for split in data.values():
        for row in split:
            composition, _, group, name = row["image_id"].split("/")
            label, bg, co = (LABELS[row[column]] for column in ("label", "bg", "co_occur_obj"))
            assert group == f"obj-{label}_bg-{bg}_co_occur_obj-{co}"
            assert row["group"] == 4 * row["label"] + 2 * row["bg"] + row["co_occur_obj"]
            assert row["bg_group"] == 2 * row["label"] + row["bg"]
            assert row["co_occur_obj_group"] == 2 * row["label"] + row["co_occur_obj"]
            assert composition == folder_of(correlation if split is data["train"] else 0.5)
            on_disk = np.asarray(PIL.Image.open(small / row["image_id"]))
            assert (np.asarray(row["image"]) == on_disk).all()
            assert np.asarray(row["mask"]).all() and not np.asarray(row["co_occur_obj_mask"]).any()
            assert name.endswith(".jpg")


def test_what_was_written_as_parquet_loads_with_masks_and_groups(small, tmp_path):
    data = urbancars.load(small)
    write_folder(data, tmp_path / "parquet", CARD)
    again = urbancars.load(tmp_path / "parquet")
    assert label_of(again) == "urbancars 0.95"
    assert again["train"].features == data["train"].features
    plain = load_dataset(str(tmp_path / "parquet"), split="test")
    assert plain["image_id"][:] == data["test"]["image_id"][:]
    assert np.asarray(plain[0]["mask"]).all()


def test_another_copy_is_refused_or_named(small):
    (group_folder(small) / "003.jpg").unlink()
    (group_folder(small) / "003_mask.png").unlink()
    (group_folder(small) / "003_co_occur_obj_mask.png").unlink()
    with pytest.raises(UleError, match=r"not the published urbancars 0\.95"):
        urbancars.load(small)
    assert "variant mine" in label_of(urbancars.load(small, variant="mine"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "000.jpg").write_bytes((f / "000.jpg").read_bytes()[:300]), r"unreadable image: .*000\.jpg"),
        (lambda f: (f / "000_mask.png").write_bytes(b"x"), r"unreadable image: .*000_mask\.png"),
        (lambda f: (f / "000.jpg").unlink(), r"masks of no image: 000_co_occur_obj_mask\.png"),
        (lambda f: f.rename(f.with_name("elsewhere")), "no folder bg-0.95.*obj-urban_bg-urban_co_occur_obj-urban"),
    ],
)
def test_bad_files(small, damage, message):
    damage(group_folder(small))
    with pytest.raises(UleError, match=message):
        urbancars.load(small, variant="mine")


def test_a_mask_that_links_out_of_the_folder_is_refused(small, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    PIL.Image.new("L", (4, 4)).save(secret)
    mask = group_folder(small) / "000_mask.png"
    mask.unlink()
    mask.symlink_to(secret)
    with pytest.raises(UleError, match="link out of"):
        urbancars.load(small)


def test_bad_options(small, tmp_path):
    with pytest.raises(UleError, match=r"correlation 0\.9 is unknown"):
        urbancars.load(small, 0.9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UleError, match=r"holds no bg-0\.95_co_occur_obj-0\.95/"):
        urbancars.load(tmp_path / "empty")
    with pytest.raises(UleError, match="--data_dir"):
        urbancars.load()


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not here")
def test_photographs_of_the_same_layout_load_as_a_named_variant():
    with pytest.raises(UleError, match="not the published urbancars"):
        urbancars.load(PHOTOGRAPHS)
    data = urbancars.load(PHOTOGRAPHS, variant="recomposed")
    assert {split: len(data[split]) for split in data} == {"train": 2400, "validation": 320, "test": 600}
    row = data["test"][-1]
    assert row["image"].size == row["mask"].size == (144, 144)
    assert 0.02 < np.asarray(row["mask"]).mean() < 0.5
    assert row["co_occur_obj_mask"] is None
