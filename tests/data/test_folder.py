from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Image
from hypothesis import given, settings
from hypothesis import strategies as st

from ule_hf.data import load
from ule_hf.data.folder import load_folder
from ule_hf.errors import UleError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def write_image(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (9, 7), (colour, 50, 100)).save(path)


def rows_of(counts):
    """``{(label, split, place): count}`` to metadata rows."""
    return [
        {"file_name": f"{label}-{split}-{place}-{i}.png", "label": label, "split": split, "place": place}
        for (label, split, place), count in counts.items()
        for i in range(count)
    ]


def write_folder(root, rows, file="metadata.csv", images=True):
    """The rows as metadata, and an image for each."""
    root.mkdir(parents=True, exist_ok=True)
    if file.endswith(".csv"):
        lines = [",".join(rows[0])] + [",".join(f'"{value}"' for value in row.values()) for row in rows]
    else:
        lines = [json.dumps(row) for row in rows]
    (root / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for i, row in enumerate(rows if images else []):
        write_image(root / row["file_name"], colour=i % 256)
    return root


def small_rows():
    """Two classes in three splits."""
    return rows_of({(label, split, "x"): 2 for label in ("cat", "dog") for split in ("train", "val", "test")})


def without(rows, *columns):
    return [{name: value for name, value in row.items() if name not in columns} for row in rows]


def sizes(data):
    return {split: len(data[split]) for split in data}


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


# ---- bad input -----------------------------------------------------------------------------------------------------


def refused(root, *words, **options):
    """The error's message, which is one line with all ``words``; the folder is as it was."""
    before = sorted(path for path in root.rglob("*")) if root.is_dir() else []
    with pytest.raises(UleError) as error:
        load_folder(root, **options)
    message = str(error.value)
    for word in words:
        assert str(word) in message
    assert "\n" not in message
    assert (sorted(path for path in root.rglob("*")) if root.is_dir() else []) == before


def test_data_dir_missing(tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "--data_dir")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is no folder")
    with pytest.raises(UleError, match="--data_dir"):
        load("folder", data_dir=None)


def test_no_metadata_and_no_images(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    refused(tmp_path, "neither metadata.csv, nor metadata.jsonl, nor images")


def test_two_metadata_files(tmp_path):
    write_folder(tmp_path, small_rows())
    write_folder(tmp_path, small_rows(), "metadata.jsonl")
    refused(tmp_path, "both metadata.csv and metadata.jsonl", "remove one")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tiff", "webp"])
def test_truncated_image_is_named(tmp_path, suffix):
    rows = small_rows()
    rows[3]["file_name"] = f"bad.{suffix}"
    write_folder(tmp_path, rows)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / f"bad.{suffix}")
    assert len(load_folder(tmp_path)["train"]) == 4
    (tmp_path / f"bad.{suffix}").write_bytes((tmp_path / f"bad.{suffix}").read_bytes()[:-700])
    refused(tmp_path, tmp_path / f"bad.{suffix}", "--skip_bad_images")


def test_large_jpegs_are_decoded_to_their_end(tmp_path):
    # the check decodes at an eighth of the size; it must see what a full decoding sees
    rows = [row | {"file_name": f"{i}.jpg"} for i, row in enumerate(small_rows())]
    write_folder(tmp_path, rows)
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "3.jpg", progressive=True)
    whole = (tmp_path / "3.jpg").read_bytes()
    for cut in (3, 100, len(whole) // 2, len(whole) - 700):
        (tmp_path / "3.jpg").write_bytes(whole[:-cut])
        with pytest.raises(OSError):
            PIL.Image.open(tmp_path / "3.jpg").load()
        refused(tmp_path, tmp_path / "3.jpg", "truncated")


def test_many_bad_images_are_counted_or_left_out(tmp_path, caplog):
    rows = rows_of({(c, s, "x"): 10 for c in "ab" for s in "012"})
    write_folder(tmp_path, rows)
    for i in range(5):
        (tmp_path / f"a-0-x-{i}.png").write_bytes(b"" if i % 2 else b"<html>not found</html>")
    refused(tmp_path, "5 images", "a-0-x-0.png", "a-0-x-2.png", "and 2 more")
    data = load_folder(tmp_path, skip_bad_images=True)
    assert sizes(data) == {"train": 15, "validation": 20, "test": 20}
    assert not {f"a-0-x-{i}.png" for i in range(5)} & set(data["train"]["image_id"])
    assert "left out 5 unreadable images of 60" in caplog.text


def test_a_class_that_skipping_empties_is_refused(tmp_path):
    write_folder(tmp_path, small_rows())
    for path in tmp_path.glob("dog-test*"):
        path.write_bytes(b"bad")
    refused(tmp_path, "class 'dog' has no image in test", skip_bad_images=True)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"label_column": "y"}, "--label_column"),
        ({"image_column": "y"}, "--image_column"),
        ({"split_column": "y"}, "--split_column"),
        ({"attribute_columns": ["place", "y"]}, "--attribute_columns"),
    ],
)
def test_missing_column(tmp_path, options, option):
    write_folder(tmp_path, small_rows())
    refused(tmp_path, "no column 'y'", option, "file_name, label, split, place", **options)


def test_no_image_column_to_guess(tmp_path):
    write_folder(tmp_path, small_rows())
    text = (tmp_path / "metadata.csv").read_text()
    (tmp_path / "metadata.csv").write_text(text.replace("file_name", "photo", 1))
    refused(tmp_path, "no column 'file_name'", "--image_column", "photo, label")


@pytest.mark.parametrize("attributes", [["label"], ["group"], ["place", "place"], ["image_id"]])
def test_attribute_that_is_another_column(tmp_path, attributes):
    write_folder(tmp_path, small_rows())
    refused(tmp_path, f"--attribute_columns {attributes[0]}", "rename", attribute_columns=attributes)


def test_columns_named_without_metadata(tmp_path):
    for label in "ab":
        write_image(tmp_path / label / "1.png")
    for options in ({"label_column": "y"}, {"attribute_columns": ["place"]}, {"split_column": "s"}):
        refused(tmp_path, "no metadata.csv", **options)


@pytest.mark.parametrize(("file", "empty"), [("metadata.csv", ""), ("metadata.jsonl", ""), ("metadata.jsonl", None)])
@pytest.mark.parametrize("column", ["file_name", "label", "split", "place"])
def test_empty_cell(tmp_path, file, column, empty):
    rows = small_rows()
    write_folder(tmp_path, rows)
    (tmp_path / "metadata.csv").unlink()
    rows[4][column] = empty
    write_folder(tmp_path, rows, file, images=False)
    row = 6 if file.endswith(".csv") else 5
    refused(tmp_path, f"{file} row {row} ", f"empty cell in column '{column}'", attribute_columns=["place"])


def test_blanks_are_an_empty_cell_and_no_part_of_a_name(tmp_path):
    rows = small_rows()
    rows[4]["label"] += "  "
    data = load_folder(write_folder(tmp_path / "padded", rows))
    assert data["train"].features["label"].names == ["cat", "dog"]
    rows[4]["label"] = "  "
    refused(write_folder(tmp_path / "blank", rows), "metadata.csv row 6 ", "empty cell in column 'label'")


def test_missing_file(tmp_path):
    write_folder(tmp_path, small_rows())
    (tmp_path / "dog-val-x-1.png").unlink()
    refused(tmp_path, "metadata.csv row 11 (dog-val-x-1.png)", "missing")


def test_a_folder_is_no_image_file(tmp_path):
    write_folder(tmp_path, small_rows())
    (tmp_path / "dog-val-x-1.png").unlink()
    (tmp_path / "dog-val-x-1.png").mkdir()
    refused(tmp_path, "dog-val-x-1.png", "missing")


@pytest.mark.parametrize("other", ["cat-train-x-0.png", "./cat-train-x-0.png", "link.png"])
def test_two_rows_for_one_file(tmp_path, other):
    rows = small_rows()
    write_folder(tmp_path, rows)
    os.symlink(tmp_path / "cat-train-x-0.png", tmp_path / "link.png")
    rows[-1]["file_name"] = other
    write_folder(tmp_path, rows, images=False)
    refused(tmp_path, "metadata.csv row 2 (cat-train-x-0.png)", f"metadata.csv row 13 ({other})")


@pytest.mark.parametrize("outside", ["../secret.png", "a/../../secret.png", "{tmp}/secret.png"])
def test_path_that_leaves_the_folder(tmp_path, outside):
    write_image(tmp_path / "secret.png")
    rows = small_rows()
    root = write_folder(tmp_path / "data", rows)
    (root / "a").mkdir()
    rows[0]["file_name"] = outside.format(tmp=tmp_path)
    write_folder(root, rows, images=False)
    refused(root, "path outside", "metadata.csv row 2", "secret.png")


@pytest.mark.parametrize("layout", ["metadata", "folders"])
def test_link_that_leaves_the_folder(tmp_path, layout):
    write_image(tmp_path / "secret.png")
    root = tmp_path / "data"
    if layout == "metadata":
        write_folder(root, small_rows())
        link = root / "cat-test-x-0.png"
        link.unlink()
    else:
        for label in "ab":
            write_image(root / label / "1.png")
        link = root / "b" / "2.png"
    os.symlink(tmp_path / "secret.png", link)
    refused(root, "link out of", link.name)


def test_linked_class_folder_is_not_passed_over(tmp_path):
    for label in "abc":
        write_image(tmp_path / "data" / label / "1.png")
    write_image(tmp_path / "elsewhere" / "1.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "d")
    refused(tmp_path / "data", tmp_path / "data" / "d", "link")


def test_one_class(tmp_path):
    refused(write_folder(tmp_path, rows_of({("cat", s, "x"): 2 for s in "012"})), "one class only, 'cat'")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_class_that_a_split_lacks(tmp_path, split):
    rows = [row for row in small_rows() if (row["label"], row["split"]) != ("dog", split)]
    name = {"val": "validation"}.get(split, split)
    refused(write_folder(tmp_path, rows), f"class 'dog' has no image in {name}", "row ")


@pytest.mark.parametrize("split", ["train", "test"])
def test_split_column_without_a_split(tmp_path, split):
    rows = [row for row in small_rows() if row["split"] != split]
    refused(write_folder(tmp_path, rows), f"no image is marked {split}", "remove the split column")


def test_unknown_split(tmp_path):
    rows = small_rows()
    rows[5]["split"] = "holdout"
    refused(write_folder(tmp_path, rows), "'holdout'", "row 7 ", "0 or train, 1 or validation, 2 or test")


def test_split_folder_beside_another_folder(tmp_path):
    for folder in ("train", "test", "extra"):
        for label in "ab":
            write_image(tmp_path / folder / label / "1.png")
    refused(tmp_path, "'extra' lies beside 't", "split")


@pytest.mark.parametrize("folder", ["train/c", "val"])
def test_folder_without_images(tmp_path, folder):
    for split in ("train", "test"):
        for label in "ab":
            for i in range(3):
                write_image(tmp_path / split / label / f"{i}.png")
    (tmp_path / folder).mkdir()
    refused(tmp_path, f"no images in {folder}", "remove the folder")


def test_image_outside_any_class_folder(tmp_path):
    for label in "ab":
        write_image(tmp_path / label / "1.png")
    write_image(tmp_path / "stray.png")
    refused(tmp_path, "no class folder around stray.png")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file_name,label\n",
        "file_name,label\na,b.png,cat\nc.png,dog\n",  # an unquoted comma must not shift the columns
        "file_name,label\na.png,cat\nb,c.png,dog\n",
        b"file_name,label\n\xe9.png,cat\n",
    ],
)
def test_metadata_that_is_no_table(tmp_path, text):
    (tmp_path / "metadata.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path, tmp_path / "metadata.csv")


@pytest.mark.parametrize("line", ["{", "[1, 2]", "3", '"text"'])
def test_jsonl_that_is_no_table(tmp_path, line):
    write_folder(tmp_path, small_rows(), "metadata.jsonl")
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    refused(tmp_path, "metadata.jsonl row 13 is no JSON object")


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
