"""Worst-group accuracy as an `evaluate` module; what it computes is :mod:`ule_hf.metrics`.

metric = evaluate.load("ule_hf/evaluation/worst_group_accuracy")  # this folder's path; needs no network
metric.compute(predictions=[0, 1, 1], references=[0, 1, 0], groups=[0, 3, 1], num_groups=4)
"""

from __future__ import annotations

# one module a line: evaluate's scanner takes `import a, b` for one package named "a,"
import datasets
import evaluate

from ule_hf.metrics import accuracy_by_group, train_weighted_accuracy

_DESCRIPTION = """The lowest accuracy over groups, where a group is a label with a value of each spurious attribute."""

_CITATION = """@inproceedings{sagawa2020distributionally,
  title={Distributionally Robust Neural Networks for Group Shifts: On the Importance of Regularization for
         Worst-Case Generalization},
  author={Sagawa, Shiori and Koh, Pang Wei and Hashimoto, Tatsunori B. and Liang, Percy},
  booktitle={International Conference on Learning Representations},
  year={2020}
}"""

_INPUTS = """
Args:
    predictions, references, groups: ids, one of each for every sample.
    num_groups: groups there are; by default those up to the highest id.
    train_group_sizes: samples of each group in training; adds the average weighted by them.
Returns:
    accuracy, worst_group_accuracy, worst_group (its id), accuracy_by_group (NaN without samples), and with
    train_group_sizes also train_weighted_accuracy.
"""


class WorstGroupAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = {name: datasets.Value("int64") for name in ("predictions", "references", "groups")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, groups, num_groups=None, train_group_sizes=None):
        if num_groups is None:
            num_groups = len(train_group_sizes) if train_group_sizes is not None else max(groups) + 1
        by_group = accuracy_by_group(predictions, references, groups, num_groups)
        known = [group for group in range(num_groups) if by_group[group] == by_group[group]]
        worst = min(known, key=lambda group: by_group[group])
        scores = {
            "accuracy": sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references),
            "worst_group_accuracy": float(by_group[worst]),
            "worst_group": worst,
            "accuracy_by_group": by_group.tolist(),
        }
        if train_group_sizes is not None:
            scores["train_weighted_accuracy"] = train_weighted_accuracy(by_group, train_group_sizes)
        return scores
