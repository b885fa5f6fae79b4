"""Each bad input is refused in one line that names the file, row or option, and nothing is written."""

from __future__ import annotations

import os

import numpy as np
import PIL.Image
import pytest

from tests.data.folders import rows_of, sizes, small_rows, write_folder, write_image
from ule_hf.data import load
from ule_hf.data.folder import load_folder
from ule_hf.errors import UleError


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
