from __future__ import annotations

from pathlib import Path

import evaluate
import numpy as np
import pytest

import ule_hf
from ule_hf.data import urbancars
from ule_hf.errors import UleError
from ule_hf.metrics import average_ood_accuracy, benchmark_metrics, classification_metrics, shortcut_gaps

#: By hand, urban then country: both shortcuts 1 and .8; background only .5, .7; object only .6, .4; neither .2 and 0.
BY_GROUP = {
    ("urban", "urban", "urban"): 1.0,
    ("urban", "urban", "country"): 0.5,
    ("urban", "country", "urban"): 0.6,
    ("urban", "country", "country"): 0.2,
    ("country", "urban", "urban"): 0.0,
    ("country", "urban", "country"): 0.4,
    ("country", "country", "urban"): 0.7,
    ("country", "country", "country"): 0.8,
}


def test_urbancars_gaps_worked_out_by_hand():
    assert [", ".join(group) for group in BY_GROUP] == [
        group.replace("bg=", "").replace("co_occur_obj=", "") for group in urbancars.GROUPS
    ]
    # cells: both .9, background only .6, object only .5, neither .1
    id_accuracy = 0.9 * 0.9025 + 0.6 * 0.0475 + 0.5 * 0.0475 + 0.1 * 0.0025
    assert shortcut_gaps(list(BY_GROUP.values())) == pytest.approx(
        {
            "id_accuracy": id_accuracy,
            "bg_gap": 0.5 - id_accuracy,
            "co_occur_obj_gap": 0.6 - id_accuracy,
            "bg_co_occur_obj_gap": 0.1 - id_accuracy,
        }
    )
    assert shortcut_gaps(list(BY_GROUP.values()), correlation=0.5)["id_accuracy"] == pytest.approx(0.525)


@pytest.mark.parametrize(
    ("label", "correlation"), [("0.95", 0.95), ("0.5, variant mine (not the published benchmark)", 0.5)]
)
def test_urbancars_is_weighted_as_it_was_trained(label, correlation):
    found = benchmark_metrics(f"urbancars {label}", 0.0, list(BY_GROUP.values()))
    assert found == shortcut_gaps(list(BY_GROUP.values()), correlation)


def test_an_empty_group_is_not_passed_over():
    gaps = shortcut_gaps([1, 1, 1, np.nan, 1, 1, 1, 1])
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
