from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from ule_hf.data.verify import count_groups, format_counts, label_of, verify, verify_counts, verify_images
from ule_hf.errors import UleError

GROUPS = ["a", "b"]


def png(colour, size=(4, 3)):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, (colour, 0, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def split_of(groups, first, image=png):
    features = Features(image=Image(), group=ClassLabel(names=GROUPS), image_id=Value("string"))
    rows = {"image": [image(first + i) for i in range(len(groups))], "group": groups}
    rows["image_id"] = [f"{first + i}.png" for i in range(len(groups))]
    return Dataset.from_dict(rows, features=features)


@pytest.fixture
def data():
    return DatasetDict(train=split_of([0, 0, 1], 0), validation=split_of([1], 10), test=split_of([0, 1], 20))


PUBLISHED = {"train": {"a": 2, "b": 1}, "validation": {"b": 1}, "test": {"a": 1, "b": 1}}


def test_the_published_counts_are_accepted_and_labelled(data):
    verified = verify("toy", data, PUBLISHED)
    assert count_groups(verified)["validation"] == {"a": 0, "b": 1}
    assert label_of(verified) == label_of(verified["test"]) == "toy"
    assert label_of(data) == ""


def test_the_label_survives_what_a_run_does_with_data(data):
    verified = verify("toy", data, PUBLISHED, variant="mine")
    assert label_of(verified["train"].with_transform(lambda batch: batch)) == label_of(verified)
    assert label_of(verified["train"].shuffle(seed=0).select([0])) == label_of(verified)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (PUBLISHED | {"train": {"a": 1, "b": 2}}, "train       a              2          1  differs"),
        (PUBLISHED | {"test": {"a": 1, "b": 1, "c": 7}}, "test        c              0          7  differs"),
        (PUBLISHED | {"extra": {"a": 1}}, "extra       a              0          1  differs"),
        ({split: PUBLISHED[split] for split in ("train", "test")}, "validation  b              1          0  differs"),
    ],
)
def test_other_counts_are_refused_with_a_table(found, line):
    with pytest.raises(UleError, match="not the published toy") as error:
        verify_counts("toy", found, PUBLISHED)
    assert line in str(error.value).splitlines()
    assert str(error.value).count("differs") == (2 if found["train"]["a"] == 1 else 1)
    verify_counts("toy", found, PUBLISHED, variant="mine")


def test_equal_lines_are_not_marked():
    assert "differs" not in format_counts(PUBLISHED, PUBLISHED)
    assert len(format_counts(PUBLISHED, PUBLISHED).splitlines()) == 6


def test_where_only_totals_are_published():
    verify_counts("toy", PUBLISHED, {"train": 3, "validation": 1, "test": 2})
    with pytest.raises(UleError, match=r"test +all groups +3 +2  differs"):
        verify_counts("toy", PUBLISHED, {"train": 3, "validation": 1, "test": 3})


def test_a_variant_carries_its_name(data):
    data["train"] = data["train"].select([0])
    with pytest.raises(UleError, match="not the published"):
        verify("toy", data, PUBLISHED)
    assert "variant half" in label_of(verify("toy", data, PUBLISHED, variant="half"))
    with pytest.raises(UleError, match="--variant is empty"):
        verify("toy", data, PUBLISHED, variant=" ")


def test_skipped_images_make_a_variant(data):
    assert label_of(verify("toy", data, PUBLISHED, bad_images_skipped=True)) == "toy"
    data["train"] = data["train"].select([0])
    verified = verify("toy", data, PUBLISHED, bad_images_skipped=True)
    assert label_of(verified) == "toy, variant without 2 unreadable images (not the published benchmark)"
    assert "variant mine" in label_of(verify("toy", data, PUBLISHED, variant="mine", bad_images_skipped=True))
    with pytest.raises(UleError, match="not the published"):
        verify("toy", data, {"train": {"a": 0}}, bad_images_skipped=True)  # more images, not fewer


@pytest.mark.parametrize("variant", [None, "mine"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_id_occurs_once(data, split, variant):
    rows = data[split].to_dict() | {"image_id": ["0.png", "0.png", "2.png"][: len(data[split])]}
    data[split] = Dataset.from_dict(rows, features=data[split].features)
    with pytest.raises(UleError, match=r"occur twice: 0.png \(train and "):
        verify("toy", data, PUBLISHED, variant)


def test_the_size_is_looked_at_when_loading(data):
    assert label_of(verify("toy", data, PUBLISHED, image_size=(4, 3))) == "toy"
    with pytest.raises(UleError, match=r"1 images are not 5 x 3 pixels: train 0\.png \(4 x 3\)"):
        verify("toy", data, PUBLISHED, image_size=(5, 3))
    verify("toy", data, PUBLISHED, variant="small", image_size=(5, 3))


def test_good_images(data):
    verify_images("toy", data)
    verify_images("toy", data, size=(4, 3))


def test_pixels_in_two_splits(data):
    data["test"] = split_of([0, 1], 1, image=lambda i: png(i, (4, 3)))  # 1 and 2 are in train
    with pytest.raises(UleError, match=r"2 images occur in two splits: train 1.png = test 1.png"):
        verify_images("toy", data)


def test_pixels_twice_in_one_split_are_nothing_to_do_with_the_splits(data):
    data["test"] = split_of([0, 1], 20, image=lambda i: png(99))
    verify_images("toy", data)


def test_another_size(data):
    data["validation"] = split_of([1], 10, image=lambda i: png(i, (3, 4)))
    with pytest.raises(UleError, match=r"1 images are not 4 x 3 pixels: validation 10.png \(3 x 4\)"):
        verify_images("toy", data, size=(4, 3))


def test_a_corrupt_picture(data):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).save(buffer, "PNG")
    cut = {"bytes": buffer.getvalue()[:1000], "path": None}
    data["test"] = split_of([0, 1], 20, image=lambda i: cut if i == 21 else png(i))
    with pytest.raises(UleError, match=r"1 unreadable images: test 21.png \(OSError"):
        verify_images("toy", data)


def test_a_missing_file(data, tmp_path):
    missing = {"bytes": None, "path": str(tmp_path / "gone.png")}
    data["test"] = split_of([0, 1], 20, image=lambda i: missing if i == 20 else png(i))
    with pytest.raises(UleError, match=r"unreadable images: test 20.png \(FileNotFoundError"):
        verify_images("toy", data)
