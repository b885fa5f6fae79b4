"""Data is pushed and loaded again, whole and streamed."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetNotFoundError

from tests.hub.server import READER
from ule_hf.data import load
from ule_hf.data.publish import Card, push, write_folder


@pytest.fixture
def digits() -> DatasetDict:
    every = load("digits", kind="patch", correlation=0.95, seed=0)
    return DatasetDict({name: split.select(range(8)) for name, split in every.items()})


def same_rows(one, other) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert np.array_equal(np.asarray(mine.pop("image")), np.asarray(theirs.pop("image")))
        assert mine == theirs


def test_a_round_trip(hub, digits):
    digits.push_to_hub("me/digits-patch")
    loaded = load_dataset("me/digits-patch")
    assert loaded["train"].features == digits["train"].features  # label and group names included
    for split in digits:
        same_rows(digits[split], loaded[split])


def test_streaming(hub, digits):
    digits.push_to_hub("me/digits-stream", config_name="patch")
    streamed = load_dataset("me/digits-stream", "patch", split="test", streaming=True)
    same_rows(digits["test"], streamed)


def test_a_benchmark_s_folder_of_parquet(hub, digits, tmp_path):
    card = Card("Digits", "here", "anybody may", "by hand", (), "none", license_id="mit", restricted=False)
    write_folder(digits, tmp_path / "digits", card)
    push(tmp_path / "digits", "me/digits-parquet", card, right_to_publish=False)
    loaded = load_dataset("me/digits-parquet")
    assert loaded["train"].features == digits["train"].features
    for split in digits:
        same_rows(digits[split], loaded[split])
    same_rows(digits["test"], load_dataset("me/digits-parquet", split="test", streaming=True))


def test_private_data_and_a_wrong_token(hub, digits, monkeypatch):
    digits.push_to_hub("me/digits-private", private=True)
    assert hub.repositories["dataset", "me/digits-private"].private
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(DatasetNotFoundError):
        load_dataset("me/digits-private")


def test_a_hub_that_fails_midway_leaves_no_half_dataset(hub, digits):
    hub.fault = lambda method, path: (500, {"error": "out of order"}) if "/commit/" in path else None
    with pytest.raises(OSError, match="out of order"):
        digits.push_to_hub("me/digits-later")
    assert hub.files("me/digits-later", kind="dataset") == {}
    hub.fault = lambda method, path: None
    digits.push_to_hub("me/digits-later")
    same_rows(digits["train"], load_dataset("me/digits-later", split="train"))
