from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Image
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.folders import rows_of, sizes, small_rows, without, write_folder, write_image
from ule_hf.data.folder import load_folder

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["metadata.csv", "metadata.jsonl"])
def test_metadata(tmp_path, file):
    counts = {
        (label, split, place): 1 + label + split
        for label in (2, 10)
        for split in (0, 1, 2)
        for place in ("sea, far", "wäld")
    }
    data = load_folder(write_folder(tmp_path, rows_of(counts), file), attribute_columns=["place"])

    train = data["train"]
    assert train.features["image"] == Image()
    assert train.features["label"] == ClassLabel(names=["2", "10"])  # by value, not by the alphabet
    assert train.features["place"] == ClassLabel(names=["sea, far", "wäld"])
    assert train.features["group"].names[1] == "2, place=wäld"
    for number, split in enumerate(("train", "validation", "test")):
        names = data[split].features["group"].names
        found = Counter(names[group] for group in data[split]["group"])
        expected = {f"{la}, place={p}": n for (la, s, p), n in counts.items() if s == number}
        assert found == expected
        for row in data[split]:
            label, split_cell, place, _ = row["image_id"].split("-")
            assert data[split].features["label"].int2str(row["label"]) == label
            assert data[split].features["place"].int2str(row["place"]) == place
            assert int(split_cell) == number


def test_images_are_read_from_their_files_when_used(tmp_path):
    data = load_folder(write_folder(tmp_path, small_rows()))
    row = data["train"].cast_column("image", Image(decode=False))[0]
    assert row["image"] == {"bytes": None, "path": str(tmp_path / row["image_id"])}
    write_image(tmp_path / row["image_id"], colour=77)
    assert data["train"][0]["image"].getpixel((0, 0)) == (77, 50, 100)


def test_a_relative_folder_survives_a_change_of_directory(tmp_path, monkeypatch):
    write_folder(tmp_path / "here", small_rows())
    monkeypatch.chdir(tmp_path)
    data = load_folder("here")
    monkeypatch.chdir("/")
    assert data["train"][0]["image"].size == (9, 7)


@pytest.mark.parametrize("column", ["file_name", "img_filename", "filename", "image", "path"])
def test_image_column_is_guessed(tmp_path, column):
    write_folder(tmp_path, small_rows())
    text = (tmp_path / "metadata.csv").read_text()
    (tmp_path / "metadata.csv").write_text(text.replace("file_name", column, 1))
    assert sizes(load_folder(tmp_path)) == {"train": 4, "validation": 4, "test": 4}


def test_named_columns(tmp_path):
    rows = [
        {"file_name": row["file_name"], "wrong": "nowhere.png", "y": row["label"], "part": row["split"]}
        for row in small_rows()
    ]
    write_folder(tmp_path, rows)
    data = load_folder(tmp_path, image_column="file_name", label_column="y", split_column="part")
    assert data["test"].features["label"].names == ["cat", "dog"]
    assert sizes(data) == {"train": 4, "validation": 4, "test": 4}


@pytest.mark.parametrize("words", [("0", "1", "2"), ("TRAIN", "valid", "test"), ("training", "dev", "Test ")])
def test_names_of_splits(tmp_path, words):
    rows = rows_of({(c, w, "x"): n for c in "ab" for n, w in enumerate(words, start=1)})
    write_folder(tmp_path, rows)
    assert sizes(load_folder(tmp_path)) == {"train": 2, "validation": 4, "test": 6}


def test_names_are_kept_as_they_are_written(tmp_path):
    rows = rows_of({(c, s, "x"): 1 for c in ("NA", "01", "1.0") for s in "012"})
    data = load_folder(write_folder(tmp_path, rows))
    assert data["train"].features["label"].names == ["01", "1.0", "NA"]


def test_jsonl_integers_stay_integers_beside_a_missing_value(tmp_path):
    rows = rows_of({(c, s, "x"): 1 for c in (0, 1) for s in "012"})
    rows[0] |= {"note": 1}
    data = load_folder(write_folder(tmp_path, rows, "metadata.jsonl"))
    assert data["train"].features["label"].names == ["0", "1"]


def test_byte_order_mark_and_blank_lines(tmp_path):
    for file in ("metadata.csv", "metadata.jsonl"):
        root = write_folder(tmp_path / file, small_rows(), file)
        (root / file).write_text("\ufeff" + (root / file).read_text() + "\n\n", encoding="utf-8")
        assert sizes(load_folder(root)) == {"train": 4, "validation": 4, "test": 4}


def test_class_folders_by_split(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for label in ("Zoë's cat", "dog #1"):
            for i in range(count):
                write_image(tmp_path / split / label / "deeper" / f"bild {i} ü.JPG")
    (tmp_path / "README.txt").write_text("no image")
    write_image(tmp_path / ".cache" / "thumbnail.png")
    data = load_folder(tmp_path)
    assert sizes(data) == {"train": 6, "validation": 4, "test": 2}
    assert data["train"].features["group"].names == ["Zoë's cat", "dog #1"]
    assert data["test"]["image_id"][:] == ["test/Zoë's cat/deeper/bild 0 ü.JPG", "test/dog #1/deeper/bild 0 ü.JPG"]
    assert data["test"][1]["image"].size == (9, 7)


def test_class_folders_named_by_digits_are_no_splits(tmp_path):
    for label in "012":
        for i in range(10):
            write_image(tmp_path / label / f"{i}.png")
    assert load_folder(tmp_path)["train"].features["label"].names == ["0", "1", "2"]


def test_topmost_folders_tell_the_split_beside_metadata_too(tmp_path):
    rows = [row | {"file_name": f"{row['split']}/{row['file_name']}"} for row in small_rows()]
    data = load_folder(write_folder(tmp_path, without(rows, "split")))
    assert all(name.startswith("val/") for name in data["validation"]["image_id"])
    assert sizes(data) == {"train": 4, "validation": 4, "test": 4}


def test_any_kind_of_picture_is_read(tmp_path):
    write_folder(tmp_path, small_rows())
    modes = ["1", "L", "P", "RGBA", "I;16", "LA"]
    for path, mode in zip(sorted(tmp_path.glob("*.png")), modes, strict=False):
        PIL.Image.new(mode, (5, 5)).save(path)
    assert sum(sizes(load_folder(tmp_path)).values()) == 12


# ---- splits that are drawn -----------------------------------------------------------------------------------------

COUNTS = st.dictionaries(
    st.tuples(st.sampled_from("ab"), st.just(""), st.sampled_from("xyz")), st.integers(1, 60), min_size=2
).filter(lambda counts: all(any(la == c and n > 2 for (la, _, _), n in counts.items()) for c in "ab"))


@settings(max_examples=15, deadline=None)
@given(COUNTS, st.integers(0, 5))
def test_drawn_splits_are_stratified_by_group(tmp_path_factory, counts, seed):
    root = write_folder(tmp_path_factory.mktemp("data"), without(rows_of(counts), "split"))
    data = load_folder(root, attribute_columns=["place"], seed=seed)
    names = data["train"].features["group"].names
    drawn = {split: Counter(names[group] for group in data[split]["group"]) for split in data}
    for (label, _, place), count in counts.items():
        group = f"{label}, place={place}"
        train, validation, test = (drawn[split][group] for split in ("train", "validation", "test"))
        assert train + validation + test == count
        assert train >= 1
        if count > 2:
            assert validation == test == max(1, round(0.15 * count))
    again = load_folder(root, attribute_columns=["place"], seed=seed)
    assert all(again[split]["image_id"][:] == data[split]["image_id"][:] for split in data)


def test_the_seed_decides_the_draw_and_the_log_tells_it(tmp_path, caplog):
    root = write_folder(tmp_path, without(rows_of({(c, "", "x"): 20 for c in "ab"}), "split"))
    with caplog.at_level(logging.INFO):
        one, two = load_folder(root, seed=0), load_folder(root, seed=1)
    assert sizes(one) == sizes(two) == {"train": 28, "validation": 6, "test": 6}
    assert set(one["test"]["image_id"]) != set(two["test"]["image_id"])
    assert "drawn at random, by group (seed 1): train 28, validation 6, test 6" in caplog.text


def test_validation_is_drawn_from_train_where_it_is_missing(tmp_path):
    rows = rows_of({(c, s, "x"): 20 for c in "ab" for s in ("train", "test")})
    data = load_folder(write_folder(tmp_path, rows))
    assert sizes(data) == {"train": 34, "validation": 6, "test": 40}
    assert all("-train-" in name for name in data["validation"]["image_id"])
    assert not set(data["train"]["image_id"]) & set(data["validation"]["image_id"])
    assert Counter(data["validation"]["label"]) == {0: 3, 1: 3}


# ---- real photographs ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "waterbirds50").is_dir(), reason="shared/data/waterbirds50 is not here")
def test_waterbirds50():
    start = time.perf_counter()
    data = load_folder(SHARED / "waterbirds50", label_column="y", attribute_columns=["place"])
    assert time.perf_counter() - start < 20  # 1.1 s on two cores
    assert sum(sizes(data).values()) == 2886
    assert data["train"].features["group"].names == ["0, place=0", "0, place=1", "1, place=0", "1, place=1"]
    assert np.bincount(data["train"]["group"][:]).tolist() == [804, 44, 16, 349]
    assert data["train"][0]["image"].size == (160, 160)
