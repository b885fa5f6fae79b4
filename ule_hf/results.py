"""What a run measured: ``results.json`` and the table that is printed. From the metrics that a Trainer has logged."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from datasets import Dataset

from ule_hf.arguments import MethodArguments, ModelArguments
from ule_hf.classifier_trainer import ClassifierTrainer, column
from ule_hf.config import ULEConfig
from ule_hf.data.verify import label_of
from ule_hf.metrics import BENCHMARK_SUMMARY, SUMMARY, benchmark_metrics
from ule_hf.provenance import git_revision

Results = dict[str, Any]
#: The figures of a split that an epoch's selection looks at, by the rule's name.
SELECTION_RULES = {
    "worst_class": "worst_class_accuracy",
    "average": "accuracy",
    "worst_group": "worst_group_accuracy",
    "last": None,
}
PACKAGES = ("ule_hf", "torch", "torchvision", "transformers", "datasets", "accelerate", "timm", "scikit-learn")


def model_names(method: str) -> dict[str, str]:
    """What ``results.json`` calls each model, the shipped one first, and what its metrics begin with.

    >>> model_names("erm")
    {'model': ''}
    """
    return {"teacher": "", "student": "student_"} if method == "ule" else {"model": ""}


def figures(metrics: dict[str, float], test: Dataset, names: dict[str, str]) -> Results:
    """The test figures of each model, from metrics whose keys begin with ``test_``."""
    return {name: _model_figures(metrics, f"test_{prefix}", test) for name, prefix in names.items()}


def _model_figures(metrics: dict[str, float], prefix: str, test: Dataset) -> Results:
    of_split = split_figures(metrics, prefix, test)
    groups = of_split.pop("groups")
    by_group = [groups[n]["accuracy"] if n in groups else float("nan") for n in test.features["group"].names]
    own = benchmark_metrics(label_of(test), of_split["accuracy"], by_group)
    return {f"test_{key}": of_split[key] for key in SUMMARY} | {"groups": groups} | {f"test_{k}": own[k] for k in own}


def split_figures(metrics: dict[str, float], prefix: str, split: Dataset) -> Results:
    """The summary and each group's accuracy and size, from metrics whose keys begin with ``prefix``."""
    found: Results = {key: metrics[f"{prefix}{key}"] for key in SUMMARY if f"{prefix}{key}" in metrics}
    if "group" in split.features:
        ids = column(split, "group").tolist()
        found["groups"] = {
            name: {"accuracy": metrics[f"{prefix}group_{g}_accuracy"], "size": ids.count(g)}
            for g, name in enumerate(split.features["group"].names)
            if f"{prefix}group_{g}_accuracy" in metrics
        }
    return found


def curve(log_history: Sequence[dict], validation: Dataset, test: Dataset, names: dict[str, str]) -> list[Results]:
    """Validation and test figures of each epoch that was evaluated on both.

    Args:
        log_history: ``trainer.state.log_history``: rows of metrics with ``eval_`` or ``test_`` before their names.

    Returns:
        One entry an epoch: ``epoch``, ``validation`` and ``test`` of the shipped model; of every other model the same
        with its name before, such as ``student_validation``.
    """
    of_validation: dict[float, dict] = {}
    of_test: dict[float, dict] = {}
    for row in log_history:
        if "eval_accuracy" in row:
            of_validation[row["epoch"]] = row
        elif "test_accuracy" in row:
            of_test[row["epoch"]] = row
    entries = []
    for epoch in sorted(of_validation.keys() & of_test.keys()):
        entry: Results = {"epoch": epoch}
        for prefix in names.values():
            entry[f"{prefix}validation"] = split_figures(of_validation[epoch], f"eval_{prefix}", validation)
            entry[f"{prefix}test"] = split_figures(of_test[epoch], f"test_{prefix}", test)
        entries.append(entry)
    return entries


def selections(entries: Sequence[Results], head_start: float = 0.0, with_groups: bool = True) -> dict[str, Results]:
    """The epoch that each rule of `SELECTION_RULES` picks by its validation figures; of equally good ones the last.

    Args:
        entries: of :func:`curve`. Those of an earlier stage (``stage``) and of ULE's head start are no candidates.
        with_groups: whether the validation data has groups beyond the classes; without, there is no ``worst_group``.

    Returns:
        Of each rule the ``epoch`` and its ``validation`` and ``test`` figures.

    >>> low, high = ({"epoch": e, "validation": {"accuracy": a}, "test": {}} for e, a in ((1, 0.5), (2, 0.9)))
    >>> selections([low, high])["average"]["epoch"], selections([low, low | {"epoch": 3}])["average"]["epoch"]
    (2, 3)
    """
    candidates = [entry for entry in entries if "stage" not in entry and entry["epoch"] > head_start]
    picked = {}
    for rule, key in SELECTION_RULES.items():
        known = [entry for entry in candidates if key is None or key in entry["validation"]]
        if known and (with_groups or rule != "worst_group"):
            best = max(known, key=lambda e, key=key: (e["validation"][key] if key else 0.0, e["epoch"]))
            picked[rule] = {name: best[name] for name in ("epoch", "validation", "test")}
    return picked


def evaluate_last_epoch(trainer: ClassifierTrainer, test: Dataset) -> dict[str, float]:
    """Test metrics of the last epoch, to show beside the selected one what selection did."""
    if trainer.last_epoch is None:  # it is the one that is loaded
        return trainer.evaluate(test, metric_key_prefix="test")
    trainer.model.load_state_dict(trainer.last_epoch)
    metrics = trainer.evaluate(test, metric_key_prefix="test")
    trainer._load_best_model()
    return metrics


def format_table(results: Results) -> str:
    """A column a model: average, train-weighted average, worst class, worst group, each group with its size."""
    models = {name: results[name] for name in ("student", "teacher", "model") if name in results}
    shipped = list(models.values())[-1]
    shown = {f"test_{key}": name for key, name in (SUMMARY | BENCHMARK_SUMMARY).items()}
    rows = [(name, "", [m[key] for m in models.values()]) for key, name in shown.items() if key in shipped]
    rows += [
        (f"  {name}", str(group["size"]), [m["groups"][name]["accuracy"] for m in models.values()])
        for name, group in shipped["groups"].items()
    ]
    width = max(len(row[0]) for row in rows)
    rows = [(name, size, [f"{100 * value:.1f}" for value in values]) for name, size, values in rows]
    rows = [("test accuracy", "images", list(models)), *rows]
    return "\n".join(f"{n:<{width}}  {s:>6}" + "".join(f"  {cell:>7}" for cell in cells) for n, s, cells in rows)


def record(
    augmentation: str,
    model_args: ModelArguments,
    method_args: MethodArguments,
    args: ULEConfig,
    trainer: ClassifierTrainer,
    command: str | None,
) -> Results:
    """What it takes to do the run again; ULE's own choices of ULE alone."""
    of_method = method_args.of_method()
    if method_args.method == "ule":
        of_method = {
            "variant": vars(args.variant()),
            "unlearning_weight": args.unlearning_weight,
            "unlearning_decay": args.unlearning_decay,
            "trial_accuracy": args.trial_accuracy,
            "exchange_has_failed": trainer.exchange_has_failed(),
            "trial": trainer.trial(),
            "balance_errors": args.balance_errors,
            "errors_were_balanced": trainer.is_balancing(),
            "class_balanced_sampling": args.class_balanced_sampling,
            "student_head_start": args.student_head_start,
            "head_start_accuracy": args.head_start_accuracy,
            "student_learned_at": None if trainer.student_learned_at.isinf() else trainer.student_learned_at.item(),
            "head_start_ended": trainer.head_start_ends,
            "freeze_student": args.freeze_student,
        }
    return {
        "command": command,
        "git_revision": git_revision(),
        "seed": args.seed,
        "method": method_args.method,
        **of_method,
        "epochs": args.num_train_epochs,
        "selected_by": args.metric_for_best_model if args.load_best_model_at_end else "last epoch",
        "selected_checkpoint": os.path.basename(trainer.state.best_model_checkpoint or "") or None,
        "selected_score": trainer.state.best_metric,
        "processes": args.world_size,
        "device": str(args.device),
        "machine": platform.machine(),
        "augmentation": augmentation,
        "model": vars(model_args),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
