from __future__ import annotations

import time
from functools import lru_cache

import numpy as np
import pytest
from datasets import ClassLabel
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from ule_hf.data import load
from ule_hf.data.digits import SHORTCUTS, build_digits
from ule_hf.errors import UleError

KINDS = ("patch", "half")


@lru_cache
def built(kind, correlation=0.95, seed=0):
    return build_digits(kind, correlation, seed)


def pixels(split):
    return np.stack([np.asarray(image) for image in split["image"]])


def halves(image_id):
    _, upper, lower = image_id.split("-")
    return upper, lower


@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_pictures(kind):
    for split in built(kind).values():
        assert split.features["label"] == ClassLabel(names=["even", "odd"])
        assert split.features["shortcut"] == ClassLabel(names=list(SHORTCUTS[kind]))
        assert split.features["group"].num_classes == 4
        assert split[0]["image"].mode == "RGB"
        assert split[0]["image"].size == (32, 32)
        assert len(set(split["image_id"])) == len(split)
        assert split["group"][:] == [2 * label + s for label, s in zip(split["label"], split["shortcut"], strict=True)]


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(KINDS), st.floats(0.5, 1.0), st.integers(0, 3))
def test_shortcut_agrees_exactly_as_often_as_asked(kind, correlation, seed):
    data = build_digits(kind, correlation, seed)
    for name in ("train", "validation"):
        labels, shortcuts = np.array(data[name]["label"]), np.array(data[name]["shortcut"])
        for label in (0, 1):
            agree = shortcuts[labels == label] == label
            assert agree.sum() == round(correlation * len(agree))
    assert len(set(np.bincount(data["test"]["group"][:], minlength=4))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_correlation_has_no_counterexample(kind):
    data = build_digits(kind, 1.0)
    for name in ("train", "validation"):
        assert data[name]["label"][:] == data[name]["shortcut"][:]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_shortcuts_are_what_the_pictures_show(kind):
    digits = load_digits().target
    for split in built(kind).values():
        for image_id, label, shortcut in zip(split["image_id"], split["label"], split["shortcut"], strict=True):
            if kind == "patch":
                digit, colour = halves(image_id)
                assert colour == SHORTCUTS["patch"][shortcut]
            else:
                upper, digit = halves(image_id)
                assert digits[int(upper)] == shortcut
                assert digits[int(digit)] >= 2
            assert digits[int(digit)] % 2 == label
    if kind == "patch":
        corner = pixels(built(kind)["train"])[:, :6, :6].astype(int)
        blue = np.array(built(kind)["train"]["shortcut"]) == 1
        assert (corner[blue][..., 2] > corner[blue][..., 0]).all()
        assert (corner[~blue][..., 0] > corner[~blue][..., 2]).all()


def test_every_test_picture_comes_once_with_each_shortcut():
    for kind in KINDS:
        test = built(kind)["test"]
        task = [halves(image_id)[0 if kind == "patch" else 1] for image_id in test["image_id"]]
        pairs = set(zip(task, test["shortcut"], strict=True))
        assert pairs == {(picture, shortcut) for picture in set(task) for shortcut in (0, 1)}
        assert len(pairs) == len(test)


@pytest.mark.parametrize(
    ("kind", "region"),
    [("patch", np.s_[:, 6:]), ("half", np.s_[:, 16:]), ("half", np.s_[:, :16])],
    ids=["digit", "lower", "upper"],
)
def test_no_picture_occurs_in_two_splits(kind, region):
    # by their pixels, not by their names; below the patch's rows a digit is still a digit of its own
    seen = [{picture.tobytes() for picture in pixels(split)[region]} for split in built(kind).values()]
    assert all(len(pictures) > 50 for pictures in seen)
    for i, pictures in enumerate(seen):
        for others in seen[i + 1 :]:
            assert not pictures & others


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides_the_splits_and_correlation_does_not(kind):
    def task(data, name):
        return [halves(image_id)[0 if kind == "patch" else 1] for image_id in data[name]["image_id"]]

    again, weak, other = build_digits(kind), build_digits(kind, 0.6), build_digits(kind, seed=1)
    for name in ("train", "validation", "test"):
        assert again[name]["image_id"][:] == built(kind)[name]["image_id"][:]
        assert (pixels(again[name]) == pixels(built(kind)[name])).all()
        assert task(weak, name) == task(again, name)
        assert set(task(other, name)) != set(task(again, name))


def test_load_passes_its_options_on():
    assert load("digits", kind="half", seed=3)["train"]["image_id"][:] == built("half", seed=3)["train"]["image_id"][:]


@pytest.mark.parametrize("options", [{"kind": "stripe"}, {"correlation": 0.49}, {"correlation": 1.1}])
def test_bad_options(options):
    with pytest.raises(UleError, match="digits: "):
        build_digits(**options)


def test_a_build_takes_less_than_two_seconds():
    start = time.process_time()
    build_digits("patch", seed=7)
    assert time.process_time() - start < 2
