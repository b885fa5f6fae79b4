"""The runs that a report is about: lines of `ule-hf compare`, and output folders of `ule-hf train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ule_hf.recipes
from ule_hf.arguments import DataArguments, parse
from ule_hf.card import CONFIG_FILE, RESULTS_FILE, read_json
from ule_hf.comparison.run import Line, read
from ule_hf.comparison.table import Name, crossed
from ule_hf.errors import UleError

#: The rule of a run whose results hold no figures of each epoch: whatever epoch it saved.
SAVED = "saved"


@dataclass
class Runs:
    """A line for each run, the runs there should be, what is wrong or left out in words, and the files read."""

    lines: list[Line] = field(default_factory=list)
    expected: list[Name] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


def collect(paths: Sequence[str | Path]) -> Runs:
    """Read results files (``.jsonl`` of a comparison), output folders, and folders of both.

    A broken line, an unfinished run, and a file in a folder that is of something else become problems.

    Raises:
        UleError: a path that is not there, a named file that is no comparison, or no run at all.
    """
    runs = Runs()
    for path in map(Path, paths):
        if path.is_file():
            _add_file(runs, path)
        elif path.is_dir():
            _add_folder(runs, path)
        else:
            raise UleError(f"{path}: there is no such file or folder; give results of ule-hf compare or ule-hf train")
    if not runs.lines:
        left_out = f" ({runs.problems[0]})" if runs.problems else ""
        raise UleError(f"{', '.join(map(str, paths))}: no run of a comparison is there{left_out}; run ule-hf compare")
    return runs


def _add_file(runs: Runs, path: Path) -> None:
    lines, problems = read(path)
    runs.lines += lines
    runs.expected += crossed(lines)
    runs.problems += problems
    runs.sources.append(path.name)


def _add_folder(runs: Runs, folder: Path) -> None:
    for path in sorted(folder.rglob("*.jsonl")):
        try:
            _add_file(runs, path)
        except UleError:
            runs.problems.append(f"{path.relative_to(folder)} holds no runs of a comparison, and is left out")
    outputs = sorted({path.parent for name in (RESULTS_FILE, CONFIG_FILE) for path in folder.rglob(name)})
    for output in outputs:
        if any(part.startswith("checkpoint-") for part in output.parts):
            continue
        name = output.relative_to(folder.parent)
        if (output / RESULTS_FILE).is_file():
            runs.lines.append(_line(read_json(output / RESULTS_FILE), str(name)))
            runs.sources.append(f"{name}/{RESULTS_FILE}")
        else:
            runs.problems.append(f"{name} holds no {RESULTS_FILE}: not finished, or not evaluated")


def _line(results: dict[str, Any], name: str) -> Line:
    """An output folder's results as a comparison would have recorded them."""
    try:
        run = results["run"]
        line = {
            "bed": run["dataset"] or _data_name(run["command"]),
            "method": run.get("method", "ule") if run.get("unlearning_weight", 1) else "plain training",
            "seed": run["seed"],
            "status": "finished",
            "error": None,
            "command": run["command"],
            "options": {
                "bed": {"model": run["model"]["model"], "num_train_epochs": run["epochs"]},
                "method": run.get("variant", {}) | {"unlearning_weight": run.get("unlearning_weight")},
            },
            **results,
        }
        if "selections" not in line:
            saved = results.get("model") or results["teacher"]
            figures = {key.removeprefix("test_"): value for key, value in saved.items()}
            line["selections"] = {SAVED: {"test": figures}}
    except KeyError as error:
        raise UleError(
            f"{name}/{RESULTS_FILE} holds no {error}; it is not of ule-hf train, or of an old one"
        ) from error
    return line


def data_arguments(command: str) -> DataArguments:
    """What a recorded command of `recipes/train.py` says of its data.

    Raises:
        UleError: an option that this version does not know.
    """
    _, *argv = shlex.split(command)
    # --use_cpu, because bf16 is refused where there is neither a GPU nor this option
    return parse([*argv, "--use_cpu", "true"], recipes=Path(ule_hf.recipes.__file__).parent)[0]


def _data_name(command: str | None) -> str:
    if not command:
        return "unnamed data"
    data = data_arguments(command)
    kind = f"-{data.shortcut}" if data.dataset in ("digits", "digit_pairs") else ""
    strength = f"-{data.correlation:g}" if data.dataset in ("digits", "digit_pairs", "dominoes") else ""
    return f"{data.dataset}{kind}{strength}"
