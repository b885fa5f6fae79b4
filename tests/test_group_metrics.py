"""Accuracy by group against the definition, sample by sample."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ule_hf.errors import UleError
from ule_hf.metrics import accuracy_by_group, classification_metrics, group_sizes

SAMPLES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=30)


@given(samples=SAMPLES, train_sizes=st.lists(st.integers(0, 50), min_size=5, max_size=5))
def test_every_figure_against_its_definition(samples, train_sizes):
    predictions, labels, groups = (list(column) for column in zip(*samples, strict=True))
    metrics = classification_metrics(predictions, labels, 3, groups, train_sizes)

    def accuracy(chosen) -> float:
        return sum(p == y for p, y, _ in chosen) / len(chosen)

    by_group = {g: accuracy([s for s in samples if s[2] == g]) for g in set(groups)}
    by_class = [accuracy([s for s in samples if s[1] == y]) for y in set(labels)]
    assert metrics["accuracy"] == pytest.approx(accuracy(samples))
    assert metrics["worst_class_accuracy"] == pytest.approx(min(by_class))
    assert metrics["worst_group_accuracy"] == pytest.approx(min(by_group.values()))
    assert {g for g in range(5) if f"group_{g}_accuracy" in metrics} == set(groups)
    weight = sum(train_sizes[g] for g in by_group)
    if weight:
        expected = sum(train_sizes[g] * a for g, a in by_group.items()) / weight
        assert metrics["train_weighted_accuracy"] == pytest.approx(expected)
    else:
        assert math.isnan(metrics["train_weighted_accuracy"])


def test_an_absent_group_is_never_the_worst():
    assert math.isnan(accuracy_by_group([1], [1], [2], num_groups=3)[0])
    assert classification_metrics([1], [1], 2, [2], [5, 5, 5])["worst_group_accuracy"] == 1.0


@pytest.mark.parametrize("groups", [[0, 4], [-1, 0]])
def test_a_group_outside_its_range_is_refused(groups):
    with pytest.raises(UleError, match=r"there are 4 groups \(0 to 3\)"):
        group_sizes(groups, 4)


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(UleError, match="no samples"):
        classification_metrics([], [], 2)
