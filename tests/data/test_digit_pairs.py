from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ule_hf.arguments import DataArguments, parse
from ule_hf.data import digit_pairs, load
from ule_hf.data.digit_pairs import SHORTCUTS, build_digit_pairs
from ule_hf.data.digits import build_digits
from ule_hf.errors import UleError
from ule_hf.experiment import load_data

SHARED = Path(__file__).parents[3] / "shared" / "data"
#: Pictures of each digit in the MNIST below: more 9s than 4s, and few 1s.
COUNTS = {0: 20, 1: 18, 2: 19, 3: 22, 4: 20, 9: 23}


@lru_cache
def mnist():
    """Noise, so that a picture is known by its pixels."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(list(COUNTS), list(COUNTS.values()))).astype(np.uint8)
    return rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8), labels


def write(folder, images, labels):
    (folder / "mnist").mkdir(parents=True)
    np.savez(folder / "mnist" / "mnist.npz", images=images, labels=labels)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(digit_pairs, "TRAIN", 10)
    monkeypatch.setattr(digit_pairs, "VALIDATION", 4)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "data", *mnist())
    return tmp_path / "data"


def digits_in(split):
    """MNIST's rows and digits, `[N, 2 or 3]` from top to bottom, by the pixels."""
    known = {picture.tobytes(): row for row, picture in enumerate(mnist()[0])}
    images = np.stack([np.asarray(image) for image in split["image"]])
    assert (images == images[..., :1]).all()
    rows = np.array([[known[part.tobytes()] for part in np.split(image, len(image) // 28)] for image in images[..., 0]])
    return rows, mnist()[1][rows]


examples = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@examples
@given(st.sampled_from(sorted(SHORTCUTS)), st.floats(0.5, 1.0), st.integers(0, 3))
def test_groups_are_as_large_as_asked(folder, kind, correlation, seed):
    data = build_digit_pairs(folder, kind, correlation, seed)
    for name, size in (("train", 10), ("validation", 4)):
        labels, shortcuts = np.array(data[name]["label"]), np.array(data[name]["shortcut"])
        assert np.bincount(labels).tolist() == [size, size]
        for values in np.divmod(shortcuts, 2) if kind == "two" else (shortcuts,):
            assert [(values[labels == y] == y).sum() for y in (0, 1)] == [round(correlation * size)] * 2
    values = len(SHORTCUTS[kind])
    assert np.bincount(data["test"]["group"][:]).tolist() == [20 - 14] * values + [23 - 14] * values


@examples
@given(st.sampled_from(sorted(SHORTCUTS)), st.floats(0.5, 1.0), st.integers(0, 3))
def test_pictures_are_those_that_the_columns_tell(folder, kind, correlation, seed):
    seen = []
    for split in build_digit_pairs(folder, kind, correlation, seed).values():
        rows, digits = digits_in(split)
        assert split["image"][0].mode == "RGB" and split["image"][0].size == (28, 84 if kind == "two" else 56)
        assert split.features["label"] == ClassLabel(names=["4", "9"])
        assert split.features["shortcut"] == ClassLabel(names=list(SHORTCUTS[kind]))
        assert split["image_id"][:] == ["-".join([kind, *(f"{row:05d}" for row in stack)]) for stack in rows]
        assert len(set(split["image_id"])) == len(split)
        if kind == "moving":  # in either order: whatever is not the label's digit is the shortcut
            rows, digits = (np.where(np.isin(digits, (4, 9))[:, 1:], a, a[:, ::-1]) for a in (rows, digits))
        names = [" ".join(map(str, others)) for others in digits[:, [0, *range(2, digits.shape[1])]]]
        assert [split.features["shortcut"].int2str(s) for s in split["shortcut"]] == names
        assert digits[:, 1].tolist() == [(4, 9)[label] for label in split["label"]]
        size = len(SHORTCUTS[kind])
        assert split["group"][:] == [size * y + s for y, s in zip(split["label"], split["shortcut"], strict=True)]
        seen.append((set(rows.ravel()), rows[:, 1].tolist()))
    (train, in_train), (validation, in_validation), (test, in_test) = seen
    assert not train & validation and not train & test and not validation & test
    assert len(set(in_train)) == len(in_train) and len(set(in_validation)) == len(in_validation)
    assert {in_test.count(row) for row in in_test} == {len(SHORTCUTS[kind])}  # every 4 and 9 is used
    assert len(set(in_train) | set(in_validation) | set(in_test)) == COUNTS[4] + COUNTS[9]


def test_moving_digits_stand_in_either_order_whatever_the_shortcut_says(folder):
    data = build_digit_pairs(folder, "moving", 1.0)
    rows, digits = digits_in(data["train"])
    label_below = np.isin(digits[:, 1], (4, 9))
    assert 0.2 < label_below.mean() < 0.8
    rows, digits = digits_in(data["test"])
    below = np.isin(digits[:, 1], (4, 9))
    task = np.where(below, rows[:, 1], rows[:, 0])
    assert len({*zip(task, below, strict=True)}) == len({*task})


def test_the_second_shortcut_fails_where_the_first_does_not(folder):
    first, second = np.divmod(np.array(build_digit_pairs(folder, "two", 0.7)["train"]["shortcut"]), 2)
    assert 0 < (first != second).sum() < 12


@pytest.mark.parametrize("kind", SHORTCUTS)
def test_seed_decides_the_splits_and_correlation_does_not(folder, kind):
    def task(data, name):
        rows, digits = digits_in(data[name])
        return rows[np.isin(digits, (4, 9))].tolist()

    one, again, weak, other = (build_digit_pairs(folder, kind, c, s) for c, s in ((1, 0), (1, 0), (0.6, 0), (1, 1)))
    for name in ("train", "validation", "test"):
        assert one[name]["image_id"][:] == again[name]["image_id"][:]
        assert one[name]["image"][0].tobytes() == again[name]["image"][0].tobytes()
        assert task(one, name) == task(weak, name)
        assert set(task(one, name)) != set(task(other, name))


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="MNIST is not here")
def test_real_pictures(monkeypatch):
    monkeypatch.undo()
    data = load("digit_pairs", data_dir=SHARED)
    assert [len(data[name]) for name in ("train", "validation")] == [1300, 200]
    assert np.bincount(data["train"]["group"][:]).tolist() == [618, 32, 32, 618]
    image = np.asarray(data["train"][0]["image"])
    assert image[:28].std() > 30 and image[28:].std() > 30


def test_options_of_the_recipe(folder):
    command = ["--dataset", "digit_pairs", "--data_dir", str(folder), "--shortcut", "two", "--correlation", "1.0"]
    data = load_data(parse([*command, "--use_cpu"])[0], seed=3)
    expected = load("digit_pairs", data_dir=folder, shortcut="two", correlation=1.0, seed=3)
    assert data["train"]["image_id"][:] == expected["train"]["image_id"][:]
    assert {*zip(data["train"]["label"], data["train"]["shortcut"], strict=True)} == {(0, 0), (1, 3)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correlation": 0.4}, r"digit_pairs: correlation 0\.4 is outside"),
        ({"shortcut": "patch"}, "digit_pairs: the shortcut 'patch' is unknown; choose one of half, moving, two with"),
        ({"data_dir": None}, "digit_pairs: no data folder; name one with mnist/ in it with --data_dir"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(UleError, match=message):
        build_digit_pairs(**{"data_dir": folder} | options)


@pytest.mark.parametrize("kind", ["moving", "two"])
def test_digits_refuse_what_is_of_digit_pairs(kind):
    with pytest.raises(UleError, match=f"digits: the shortcut '{kind}' is unknown; choose one of patch, half$"):
        build_digits(kind)


def test_the_default_shortcut_is_of_digits(folder):
    with pytest.raises(UleError, match="'patch' is unknown"):
        load_data(DataArguments(dataset="digit_pairs", data_dir=str(folder)), seed=0)


@pytest.mark.parametrize(("digit", "kinds"), [(9, ("half", "two")), (1, ("moving",)), (3, ("two",))])
def test_too_few_of_a_digit(tmp_path, digit, kinds):
    images, labels = mnist()
    spare = np.flatnonzero(labels == digit)[14:]
    write(tmp_path, np.delete(images, spare, axis=0), np.delete(labels, spare))
    for kind in kinds:
        with pytest.raises(UleError, match=f"MNIST has 14 of the digit {digit}, and 15 are needed"):
            build_digit_pairs(tmp_path, kind)
    if digit == 3:
        build_digit_pairs(tmp_path, "half")


def test_no_mnist(folder):
    shutil.rmtree(folder / "mnist")
    with pytest.raises(UleError, match="mnist is no folder; --data_dir needs one with mnist/ in it"):
        build_digit_pairs(folder)
