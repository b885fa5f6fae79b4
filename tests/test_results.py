"""Curves and selections from what a Trainer has logged; the recipe writes them in tests/test_recipe.py."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features

from ule_hf.results import curve, format_table, model_names, selections

SPLIT = Dataset.from_dict(
    {"label": [0, 0, 1], "group": [0, 0, 3]},
    features=Features(label=ClassLabel(names=["a", "b"]), group=ClassLabel(names=["a0", "a1", "b0", "b1"])),
)


def entry(epoch: float, worst_class: float, worst_group: float, **more) -> dict:
    validation = {"accuracy": 0.5, "worst_class_accuracy": worst_class, "worst_group_accuracy": worst_group}
    return {"epoch": epoch, "validation": validation, "test": {"accuracy": epoch / 10}, **more}


def epochs(picked: dict) -> dict[str, float]:
    return {rule: figures["epoch"] for rule, figures in picked.items()}


def test_each_rule_looks_at_its_own_figure_and_takes_the_last_of_equals():
    entries = [entry(1, 0.9, 0.1), entry(2, 0.9, 0.2), entry(3, 0.3, 0.7), entry(4, 0.2, 0.6)]
    picked = selections(entries)
    assert epochs(picked) == {"worst_class": 2, "average": 4, "worst_group": 3, "last": 4}
    assert picked["worst_group"]["test"] == {"accuracy": 0.3}
    assert "worst_group" not in selections(entries, with_groups=False)


def test_neither_a_first_stage_nor_a_head_start_is_selected():
    entries = [entry(1, 1.0, 1.0, stage=1), entry(1, 1.0, 1.0), entry(2, 0.5, 0.5)]
    assert set(epochs(selections(entries, head_start=1)).values()) == {2}
    assert selections(entries[:1]) == {}


@pytest.mark.parametrize("method", ["ule", "erm"])
def test_the_curve_pairs_validation_with_test_of_the_same_epoch(method):
    names = model_names(method)
    row = {"accuracy": 0.75, "worst_class_accuracy": 0.5, "group_0_accuracy": 0.5, "group_3_accuracy": 1.0}
    logged = {f"{p}{key}": value for p in names.values() for key, value in row.items()}
    history = [{"loss": 1.0, "epoch": 1.0}]
    history += [{f"{split}_{k}": v for k, v in logged.items()} | {"epoch": 1.0} for split in ("eval", "test")]
    history += [{f"eval_{k}": v for k, v in logged.items()} | {"epoch": 2.0}]  # stopped before its test
    (only,) = curve(history, SPLIT, SPLIT, names)
    groups = {"a0": {"accuracy": 0.5, "size": 2}, "b1": {"accuracy": 1.0, "size": 1}}
    figures = {"accuracy": 0.75, "worst_class_accuracy": 0.5, "groups": groups}
    of_student = {"student_validation": figures, "student_test": figures} if method == "ule" else {}
    assert only == {"epoch": 1.0, "validation": figures, "test": figures, **of_student}


def test_the_table_has_a_column_a_model():
    figures = {"test_accuracy": 0.5, "test_worst_class_accuracy": 0.25, "groups": {"a0": {"accuracy": 0.25, "size": 8}}}
    assert format_table({"model": figures}).splitlines()[0].split() == ["test", "accuracy", "images", "model"]
    both = format_table({"teacher": figures, "student": figures | {"test_accuracy": 0.1}}).splitlines()
    assert both[0].split()[-2:] == ["student", "teacher"] and both[1].split() == ["average", "10.0", "50.0"]
