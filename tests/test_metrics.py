from __future__ import annotations

from pathlib import Path

import evaluate
import numpy as np
import pytest

import ule_hf
from ule_hf.errors import UleError
from ule_hf.metrics import average_ood_accuracy, classification_metrics, shortcut_gaps


def samples_of(cells):
    """``{(label, bg, co): (right, wrong)}`` to predictions, labels, backgrounds and co-occurring objects."""
    rows = []
    for (label, bg, co), (right, wrong) in cells.items():
        rows += [(label, label, bg, co)] * right + [(1 - label, label, bg, co)] * wrong
    return np.array(rows).T


CELLS = {  # accuracies by hand, urban then country: both 1, .8; bg only .5, .7; object only .6, .4; neither .2, 0
    (0, 0, 0): (10, 0),
    (1, 1, 1): (8, 2),
    (0, 0, 1): (5, 5),
    (1, 1, 0): (7, 3),
    (0, 1, 0): (3, 2),  # another size: classes count alike, not samples
    (1, 0, 1): (4, 6),
    (0, 1, 1): (2, 8),
    (1, 0, 0): (0, 10),
}


def test_urbancars_gaps_worked_out_by_hand():
    # cells: both .9, bg only .6, object only .5, neither .1
    id_accuracy = 0.9 * 0.9025 + 0.6 * 0.0475 + 0.5 * 0.0475 + 0.1 * 0.0025
    gaps = shortcut_gaps(*samples_of(CELLS))
    assert gaps == pytest.approx(
        {
            "id_accuracy": id_accuracy,
            "bg_gap": 0.5 - id_accuracy,
            "co_occur_obj_gap": 0.6 - id_accuracy,
            "bg_co_occur_obj_gap": 0.1 - id_accuracy,
        }
    )
    assert shortcut_gaps(*samples_of(CELLS), correlation=0.5)["id_accuracy"] == pytest.approx(0.525)


def test_an_empty_cell_of_one_class_is_not_passed_over():
    gaps = shortcut_gaps(*samples_of({cell: counts for cell, counts in CELLS.items() if cell != (1, 0, 0)}))
    assert np.isnan(gaps["bg_co_occur_obj_gap"])


def test_out_of_distribution_accuracy_counts_environments_alike():
    assert average_ood_accuracy([0, 1, 1, 0], [0, 1, 0, 0]) == 0.75
    # 2/2 and 1/3
    assert average_ood_accuracy([0, 0, 1, 0, 0], [0, 0, 1, 1, 1], list("xxyyy")) == pytest.approx((1 + 1 / 3) / 2)
    with pytest.raises(UleError, match="no samples"):
        average_ood_accuracy([], [])


@pytest.fixture
def worst_group_accuracy(monkeypatch, tmp_path):
    folder = Path(ule_hf.__file__).parent / "evaluation" / "worst_group_accuracy"
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    return evaluate.load(str(folder), cache_dir=str(tmp_path))


def test_the_evaluate_module_says_what_the_metrics_say(worst_group_accuracy):
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 2, (2, 60))
    groups = 2 * references + rng.integers(0, 2, 60)
    sizes = [50, 3, 2, 40]
    scores = worst_group_accuracy.compute(
        predictions=predictions, references=references, groups=groups, train_group_sizes=sizes
    )
    expected = classification_metrics(predictions, references, 2, groups, sizes)
    for name in ("accuracy", "worst_group_accuracy", "train_weighted_accuracy"):
        assert scores[name] == pytest.approx(expected[name])
    assert scores["accuracy_by_group"][scores["worst_group"]] == scores["worst_group_accuracy"]


def test_the_evaluate_module_leaves_out_groups_without_samples(worst_group_accuracy):
    scores = worst_group_accuracy.compute(predictions=[1, 0, 1], references=[1, 1, 1], groups=[0, 2, 2], num_groups=4)
    assert scores["worst_group_accuracy"] == 0.5
    assert scores["worst_group"] == 2
    assert np.isnan(scores["accuracy_by_group"][1])
