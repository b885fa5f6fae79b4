"""Faults that the fuzz (``tests/fuzz``) and reading found in the loaders; each was loaded wrongly, or crashed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset

from tests.data.copies import ROWS, write_celeba, write_waterbirds
from tests.data.folders import rows_of, small_rows, write_folder, write_image
from tests.data.test_folder_bad_input import refused
from tests.data.test_urbancars import SIZES, write_urbancars
from ule_hf.data import celeba, urbancars, waterbirds
from ule_hf.data.folder import load_folder
from ule_hf.data.groups import add_groups
from ule_hf.errors import UleError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("column", ["label", "place"])
def test_a_column_that_occurs_twice_is_not_chosen_from(tmp_path, column):
    rows = small_rows()
    write_folder(tmp_path, rows)
    text = (tmp_path / "metadata.csv").read_text().splitlines()
    (tmp_path / "metadata.csv").write_text("\n".join([f"{text[0]},{column}", *(f"{line},x" for line in text[1:])]))
    refused(tmp_path, "metadata.csv", f"two columns '{column}'")


def test_a_name_that_occurs_twice_in_a_line_is_not_chosen_from(tmp_path):
    write_folder(tmp_path, small_rows(), "metadata.jsonl")
    file = tmp_path / "metadata.jsonl"
    file.write_text(file.read_text().replace('"label": "dog"', '"label": "cat", "label": "dog"', 1))
    refused(tmp_path, "metadata.jsonl row 7 is no JSON object")


@pytest.mark.parametrize("value", ["NaN", "null", "[1, 2]", '{"a": 1}'])
def test_what_is_no_name_is_an_empty_cell(tmp_path, value):
    write_folder(tmp_path, small_rows(), "metadata.jsonl")
    file = tmp_path / "metadata.jsonl"
    file.write_text(file.read_text().replace('"label": "dog"', f'"label": {value}', 1))
    refused(tmp_path, "metadata.jsonl row 7 ", "empty cell in column 'label'")


def test_jsonl_that_no_parser_takes(tmp_path):
    write_folder(tmp_path, small_rows(), "metadata.jsonl")
    file = tmp_path / "metadata.jsonl"
    whole = file.read_text()
    file.write_text(whole + "[" * 100_000 + "\n")
    refused(tmp_path, "metadata.jsonl row 13 ")
    file.write_text(whole.replace('"place": "x"', r'"place": "\ud800"', 1))
    refused(tmp_path, "metadata.jsonl row 1 ")
    file.unlink()
    file.symlink_to("/proc/self/mem")  # there, and not to be read
    refused(tmp_path, "metadata.jsonl cannot be read")


def test_a_row_with_too_few_cells_lacks_them(tmp_path):
    write_folder(tmp_path, small_rows())
    file = tmp_path / "metadata.csv"
    lines = file.read_text().splitlines()
    lines[3] = ",".join(lines[3].split(",")[:-1])
    file.write_text("\n".join(lines))
    refused(tmp_path, "metadata.csv row 4 ", "empty cell in column 'place'", attribute_columns=["place"])


def test_empty_rows_are_passed_over_and_counted(tmp_path):
    write_folder(tmp_path, small_rows())
    file = tmp_path / "metadata.csv"
    lines = file.read_text().splitlines()
    lines[2:2] = ["", ",,,"]
    file.write_text("\r\n".join(lines), encoding="utf-8-sig")
    assert len(load_folder(tmp_path)["train"]) == 4
    file.write_text(file.read_text(encoding="utf-8-sig").replace('"dog"', '""', 1))
    refused(tmp_path, "metadata.csv row 10 ")  # as a spreadsheet counts


def test_one_class_in_two_spellings(tmp_path):
    rows = rows_of({(label, split, "x"): 2 for label in ("caf\u00e9", "tea") for split in ("train", "val", "test")})
    for row in rows[::2]:
        row["label"] = row["label"].replace("\u00e9", "e\u0301")  # looks the same
    data = load_folder(write_folder(tmp_path, rows))
    assert data["train"].features["label"].names == ["caf\u00e9", "tea"]


@pytest.mark.parametrize("cell", ["two\nlines", "\x1b[31mred", "a\u2028b"])
def test_control_characters_do_not_reach_a_message(tmp_path, cell):
    rows = small_rows()
    rows[4]["label"] = cell
    refused(write_folder(tmp_path, rows), "metadata.csv", "control characters in column 'label'")


def test_a_header_of_two_lines_in_a_message(tmp_path):
    file = write_folder(tmp_path, small_rows()) / "metadata.csv"
    file.write_text(file.read_text().replace("place", '"place\n(of the animal)"', 1))
    refused(tmp_path, "no column 'species'", r"place\n(of the animal)", label_column="species")
    assert len(load_folder(tmp_path)["train"]) == 4


@pytest.mark.parametrize("name", [b"cat/\xe9.png", b"\xff/1.png", b"cat/two\nlines.png"])
def test_file_names_that_arrow_cannot_store(tmp_path, name):
    for label in ("cat", "dog"):
        write_image(tmp_path / label / "1.png")
    write_image(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))))
    refused(tmp_path, "control characters, or bytes that are no UTF-8", "rename it")


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pictures_whose_black_and_white_nobody_knows(tmp_path, dtype):
    rows = small_rows()
    rows[3]["file_name"] = "depth.tiff"
    write_folder(tmp_path, rows)
    PIL.Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "depth.tiff")  # would have been all black, or white
    refused(tmp_path, "depth.tiff", "32-bit pixels", "8 or 16 bits")


def test_two_groups_of_one_name(tmp_path):
    rows = small_rows()
    for row, label, place in zip(rows, ["a", "a", "a, place=b"] * 4, ["b", "b, place=b", "b"] * 4, strict=True):
        row |= {"label": label, "place": place, "split": "train"}
    names = {"label": ["a", "a, place=b"], "place": ["b", "b, place=b"]}
    data = Dataset.from_dict({name: [0, 1] for name in names}).cast_column("label", ClassLabel(names=names["label"]))
    with pytest.raises(UleError, match="two groups would have the name 'a, place=b, place=b'"):
        add_groups(data.cast_column("place", ClassLabel(names=names["place"])), ["place"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that is closed to whoever it then becomes")
def test_a_folder_that_may_not_be_entered_is_not_passed_over():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for label in ("a", "b", "c"):
            for i in range(3):
                write_image(Path(folder, label, f"{i}.png"))
        os.chmod(Path(folder, "c"), 0o000)
        os.seteuid(65534)
        try:
            refused(Path(folder), f"{folder}/c cannot be read: Permission denied")
        finally:
            os.seteuid(0)


# ---- benchmarks ----


@pytest.mark.parametrize("text", ["img_id,img_filename,y,split,place\n", "img_filename,y,split,place\nx.jpg,0,0\n"])
def test_waterbirds_metadata_that_is_not_whole(tmp_path, text):
    write_waterbirds(tmp_path)
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(UleError, match=r"holds no rows|is no place"):
        waterbirds.load(tmp_path, variant="mine")


def test_a_split_without_images(tmp_path):
    write_waterbirds(tmp_path, [row for row in ROWS if row[0] != 1])
    with pytest.raises(UleError, match="has no image for validation"):
        waterbirds.load(tmp_path, variant="mine")


def test_a_mask_that_cannot_be_decoded(tmp_path):
    write_waterbirds(tmp_path, masks=True)
    (tmp_path / "masks" / "000.Species" / "bird_0.png").write_bytes(b"\x89PNG")
    with pytest.raises(UleError, match=r"unreadable image: .*masks/000.Species/bird_0.png"):
        waterbirds.load(tmp_path, variant="mine")


def test_celeba_names_that_are_numbers(tmp_path):
    root = write_celeba(tmp_path, csv=True)
    for file in root.glob("*.csv"):
        file.write_text(file.read_text().replace(".jpg", ""))
    for image in (root / "img_align_celeba").iterdir():
        image.rename(image.with_suffix(""))
    assert celeba.load(root, variant="mine")["train"]["image_id"][:2] == ["000001", "000002"]


@pytest.mark.parametrize("csv", [True, False])
def test_a_celeba_row_that_lacks_a_cell_is_not_shifted(tmp_path, csv):
    root = write_celeba(tmp_path, csv=csv)
    file = root / f"list_attr_celeba.{'csv' if csv else 'txt'}"
    lines = file.read_text().splitlines()
    lines[4] = lines[4].rpartition("," if csv else " ")[0]  # what is left would be taken for the first attributes
    file.write_text("\n".join(lines))
    with pytest.raises(UleError, match=r"a row is not whole.*00000[34]"):
        celeba.load(root, variant="mine")


def test_urbancars_with_masks_for_some_of_the_images(tmp_path):
    root = write_urbancars(tmp_path, dict.fromkeys(SIZES, 4))
    for mask in list(root.rglob("000_mask.png")):
        mask.unlink()
    data = urbancars.load(root, variant="mine")
    for row in data["train"]:
        assert (row["mask"] is None) == row["image_id"].endswith("000.jpg")
