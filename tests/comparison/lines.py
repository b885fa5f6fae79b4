"""Lines of a results file as a run writes them, with figures that a test chooses."""

from __future__ import annotations

from typing import Any

VERSIONS = {"python": "3.11", "torch": "2.15.0"}


def metrics(worst: float, average: float = 0.9) -> dict[str, Any]:
    groups = {"a, place=x": {"accuracy": worst, "size": 4}, "b, place=y": {"accuracy": average, "size": 6}}
    summary = {"accuracy": average, "train_weighted_accuracy": average, "worst_class_accuracy": worst}
    return {**summary, "worst_group_accuracy": worst, "groups": groups}


def finished(method: str, seed: int, worst: float, bed: str = "birds", **changes: Any) -> dict[str, Any]:
    """A finished run whose worst group has ``worst``, ten points less at the epoch that group labels choose."""
    rules = {"worst_class": worst, "average": worst, "last": worst, "worst_group": worst - 0.1}
    run = {
        "method": "ule" if method.startswith(("ule", "constant")) else method,
        "variant": {"control": "constant" if method.startswith("constant") else "none"},
        "labels_used": {"training": "class and group" if method == "group_dro" else "class", "validation": "class"},
        "cpu_seconds": 10.0 if method == "erm" else 25.0,
        "versions": changes.pop("versions", VERSIONS),
        "device": "cpu",
        "machine": "x86_64",
        "processes": 1,
        **changes.pop("run", {}),
    }
    options = {"bed": {"dataset": "folder"}, "method": changes.pop("method_options", {"method": run["method"]})}
    return {
        **{"bed": bed, "method": method, "seed": seed, "status": "finished", "error": None, "command": "train"},
        **{"options": options | {"search": {}}, "threads": 1},
        "selections": {rule: {"epoch": 1.0, "test": metrics(value)} for rule, value in rules.items()},
        "run": run,
        **changes,
    }


def failed(method: str, seed: int, error: str, bed: str = "birds") -> dict[str, Any]:
    options = {"bed": {"dataset": "folder"}, "method": {}, "search": {}}
    names = {"bed": bed, "method": method, "seed": seed}
    return {**names, "status": "failed", "error": error, "command": "train", "options": options, "threads": 1}
