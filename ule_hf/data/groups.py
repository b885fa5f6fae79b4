"""Groups: one for each combination of a label with the values of the spurious attributes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import ClassLabel, Dataset
from numpy.typing import ArrayLike

from ule_hf.errors import UleError


def group_names(label_names: Sequence[str], attributes: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of all groups in the order of their ids: the label, then ``attribute=value`` for each attribute.

    Without attributes the groups are the labels.

    Raises:
        UleError: two groups of one name, which commas in the names can bring about.

    >>> group_names(["land bird", "water bird"], {"place": ["land", "water"]})
    ['land bird, place=land', 'land bird, place=water', 'water bird, place=land', 'water bird, place=water']
    """
    values = [[f"{name}={value}" for value in names] for name, names in attributes.items()]
    groups = [", ".join(parts) for parts in itertools.product(label_names, *values)]
    twice = [group for group, count in Counter(groups).items() if count > 1]
    if twice:
        raise UleError(f"two groups would have the name '{twice[0]}'; rename a class or a value of an attribute")
    return groups


def group_ids(
    labels: ArrayLike,
    attribute_values: Mapping[str, ArrayLike],
    label_names: Sequence[str],
    attributes: Mapping[str, Sequence[str]],
) -> np.ndarray:
    """Group of each row, counted row-major: the label varies slowest, the last attribute fastest.

    Args:
        labels: class indices, `[N]`.
        attribute_values: value indices `[N]` of every attribute in ``attributes``.

    Returns:
        int64 `[N]`, indices into :func:`group_names` of the same names.

    Raises:
        UleError: an index outside its range.

    >>> group_ids([0, 0, 1, 1], {"place": [0, 1, 0, 1]}, ["land", "water"], {"place": ["land", "water"]})
    array([0, 1, 2, 3])
    """
    ids = _checked("label", labels, label_names)
    for name, names in attributes.items():
        ids = ids * len(names) + _checked(name, attribute_values[name], names)
    return ids


def add_groups(dataset: Dataset, attributes: Sequence[str] = ()) -> Dataset:
    """The dataset with a `ClassLabel` column ``group``, from its ClassLabel columns ``label`` and ``attributes``.

    Raises:
        UleError: an index outside its range.
    """
    label_names = dataset.features["label"].names
    names = {attribute: dataset.features[attribute].names for attribute in attributes}
    values = {attribute: dataset[attribute][:] for attribute in attributes}
    ids = group_ids(dataset["label"][:], values, label_names, names)
    return dataset.add_column("group", ids, feature=ClassLabel(names=group_names(label_names, names)))


def _checked(column: str, values: ArrayLike, names: Sequence[str]) -> np.ndarray:
    indices = np.asarray(values, dtype=np.int64)
    outside = np.flatnonzero((indices < 0) | (indices >= len(names)))
    if outside.size:
        raise UleError(
            f"column '{column}', row {outside[0]}: {indices[outside[0]]} is outside 0..{len(names) - 1}; "
            "correct the row, or name the missing class in the column's ClassLabel"
        )
    return indices
