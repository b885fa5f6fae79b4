from __future__ import annotations

import itertools

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from hypothesis import given
from hypothesis import strategies as st

from ule_hf.data import load
from ule_hf.data.groups import add_groups, group_ids, group_names
from ule_hf.errors import UleError

NAMES = st.lists(st.text("abcdefg é", min_size=1, max_size=4), min_size=1, max_size=4, unique=True)
ATTRIBUTES = st.dictionaries(st.text("xyz", min_size=1, max_size=3), NAMES, max_size=3)


@given(NAMES, ATTRIBUTES)
def test_ids_count_the_names_row_by_row(label_names, attributes):
    # the product walks the combinations in the promised order, so each must get the next id, and its own name
    axes = [range(len(label_names)), *(range(len(names)) for names in attributes.values())]
    combinations = np.array(list(itertools.product(*axes)))
    values = {name: combinations[:, 1 + i] for i, name in enumerate(attributes)}

    ids = group_ids(combinations[:, 0], values, label_names, attributes)
    names = group_names(label_names, attributes)

    assert ids.tolist() == list(range(len(names)))
    assert len(set(names)) == len(names)
    for name, (label, *rest) in zip(names, combinations, strict=True):
        parts = [label_names[label]] + [f"{a}={attributes[a][v]}" for a, v in zip(attributes, rest, strict=True)]
        assert name == ", ".join(parts)


@given(NAMES)
def test_without_attributes_groups_are_labels(label_names):
    assert group_names(label_names, {}) == label_names
    assert group_ids(range(len(label_names)), {}, label_names, {}).tolist() == list(range(len(label_names)))


@pytest.mark.parametrize(("label", "place"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_index_outside_its_range_is_refused(label, place):
    with pytest.raises(UleError, match=r"row 1: (2|-1|3) is outside"):
        group_ids([0, label], {"place": [0, place]}, ["a", "b"], {"place": ["x", "y", "z"]})


def test_add_groups_names_and_numbers_the_column():
    features = Features(label=ClassLabel(names=["cat", "dog"]), place=ClassLabel(names=["in", "out", "up"]))
    dataset = Dataset.from_dict({"label": [1, 0, 1], "place": [2, 1, 0]}, features=features)

    grouped = add_groups(dataset, ["place"])

    assert grouped["group"][:] == [5, 1, 3]
    assert grouped.features["group"].int2str(5) == "dog, place=up"
    assert add_groups(dataset)["group"][:] == [1, 0, 1]


def test_unknown_dataset_lists_the_known_ones():
    with pytest.raises(UleError, match=r"'mnist' is unknown; choose one of digits, .*folder, .*waterbirds"):
        load("mnist")
