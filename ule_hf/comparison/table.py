"""The Markdown of a comparison: every figure with its spread, every problem in words, nothing averaged away."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from string import ascii_lowercase
from typing import Any

import numpy as np

from ule_hf.comparison.plan import arguments
from ule_hf.comparison.run import Line, latest
from ule_hf.comparison.statistics import (
    FEWEST_SEEDS,
    PairedDifference,
    mean_and_spread,
    most_coverage,
    paired_difference,
)
from ule_hf.variant import PRESETS, Variant

#: Bed, method and seed of a run.
Name = tuple[str, str, int]
#: Rule -> by what of validation its epoch is chosen.
RULES = {"worst_class": "worst class", "average": "average", "last": "last epoch", "worst_group": "worst group"}
#: Rules without and with group labels that stand side by side where there is no room for all.
SIDES = ("worst_class", "last", "worst_group")
WORST = "worst_group_accuracy"
#: What ULE's presets decide, as results.json records it.
PRESET_KEYS = {"variant"} | (set(PRESETS["auto"]) - {field.name for field in fields(Variant)})


@dataclass(frozen=True)
class Row:
    """The finished runs of one method on one bed that may be averaged: all alike but for the seed."""

    bed: str
    method: str
    name: str
    runs: dict[int, Line]

    def figures(self, rule: str, figure: Callable[[dict[str, Any]], float | None]) -> dict[int, float]:
        """Seed -> a figure of the test split at the epoch that ``rule`` chooses; without the seeds that have none."""
        tests = {s: run["selections"][rule]["test"] for s, run in self.runs.items() if rule in run["selections"]}
        return {seed: value for seed, test in tests.items() if (value := figure(test)) is not None}

    def worst(self, rule: str) -> dict[int, float]:
        return self.figures(rule, lambda test: test.get(WORST))

    @property
    def sample(self) -> Line:
        return next(iter(self.runs.values()))


def gather(lines: list[Line], expected: Iterable[Name] = ()) -> tuple[list[Row], list[str]]:
    """Runs that may be averaged, and a sentence for each run that is not there or not like the others.

    Args:
        lines: of a results file, as :func:`ule_hf.comparison.run.read` gives them.
        expected: the runs there should be.
    """
    lines, problems, rows = latest(lines), [], []
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for line in lines:
        name = (line["bed"], line["method"])
        groups.setdefault(name, {})
        if line["status"] != "finished":
            problems.append(f"{_named(line)} {line['status']}: {line['error']}")
        elif "selections" not in line:
            problems.append(f"{_named(line)} holds no figures of its epochs (`selections`), and is not counted")
        else:
            row = groups[name].setdefault(_text(_conditions(line)), Row(*name, line["method"], {}))
            row.runs[line["seed"]] = line
    for (bed, method), alike in groups.items():
        if len(alike) > 1:
            differing = "; ".join(_differences([_conditions(row.sample) for row in alike.values()]))
            problems.append(f"{bed}, {method}: runs that differ in more than the seed are not averaged: {differing}")
        for letter, row in zip(ascii_lowercase, alike.values(), strict=False):
            rows.append(replace(row, name=f"{method} ({letter})") if len(alike) > 1 else row)
        rows += [] if alike else [Row(bed, method, method, {})]
    for bed in dict.fromkeys(row.bed for row in rows):
        shared = {_text(_shared(row.sample)): _shared(row.sample) for row in rows if row.bed == bed and row.runs}
        if len(shared) > 1:
            differing = "; ".join(_differences(list(shared.values())))
            problems.append(f"{bed}: methods ran under different conditions, and those are not compared: {differing}")
    return rows, problems + _absent(lines, expected)


def crossed(lines: list[Line]) -> list[Name]:
    """Every method of a results file on every bed with every seed: what its comparison set out to run."""
    beds, methods, seeds = (dict.fromkeys(name[i] for name in sorted(_names(lines))) for i in range(3))
    return list(itertools.product(beds, methods, seeds))


def _names(lines: list[Line]) -> list[Name]:
    return [(line["bed"], line["method"], line["seed"]) for line in lines]


def _absent(lines: list[Line], expected: Iterable[Name]) -> list[str]:
    there = set(_names(lines))
    absent: dict[tuple[str, str], list[int]] = {}
    for bed, method, seed in dict.fromkeys(expected):
        if (bed, method, seed) not in there:
            absent.setdefault((bed, method), []).append(seed)
    return [
        f"{bed}, {method}: not run or not finished with seed {', '.join(map(str, sorted(seeds)))}"
        for (bed, method), seeds in absent.items()
    ]


def reference(row: Row, rows: list[Row], is_one: Callable[[Line], bool]) -> Row | None:
    """What ``row`` is compared with: the only row of its bed that ran under its conditions and ``is_one``."""
    same = [r for r in rows if r.bed == row.bed and r.runs and is_one(r.sample)]
    same = [r for r in same if row.runs and r.name != row.name and _shared(r.sample) == _shared(row.sample)]
    if len(same) > 1:  # several controls: that of the same preset
        same = [r for r in same if _without_control(r.sample) == _without_control(row.sample)]
    return same[0] if len(same) == 1 else None


def is_erm(line: Line) -> bool:
    return line["run"].get("method") == "erm"


def is_constant(line: Line) -> bool:
    return line["run"].get("method", "ule") == "ule" and line["run"].get("variant", {}).get("control") == "constant"


def markdown(lines: list[Line], expected: Iterable[Name] = (), problems: Iterable[str] = ()) -> str:
    """The whole page; ``problems`` are the reader's, for instance broken lines."""
    rows, found = gather(lines, [*expected, *crossed(lines)])
    page = []
    for bed in dict.fromkeys(row.bed for row in rows):
        of_bed = [row for row in rows if row.bed == bed]
        page += [f"## {bed}", ""]
        with_runs = [row for row in of_bed if row.runs]
        if with_runs:
            page += [f"`{shlex.join(arguments(with_runs[0].sample['options']['bed']))}`", "", *_searches(with_runs)]
        page += [*_overview(of_bed), ""]
        for rule in SIDES:
            if any(row.worst(rule) for row in with_runs):
                epoch = "last epoch" if rule == "last" else f"epoch chosen {_chosen(rule)}"
                page += [f"At the {epoch}:", "", *_groups(with_runs, rule), ""]
        page += [*_differences_table(with_runs), ""] if len(with_runs) > 1 else []
    problems = [*problems, *found]
    page += ["## Not counted, not compared", "", *(f"* {problem}." for problem in problems), ""] if problems else []
    return "\n".join([*_preface(rows), "", *page])


def _preface(rows: list[Row]) -> list[str]:
    counts = sorted({len(row.runs) for row in rows if row.runs})
    coverage = [f"{count} seeds {100 * most_coverage(count):.0f} %" for count in counts if count >= FEWEST_SEEDS]
    seeds = (
        f"They cannot cover more than (of differences that spread alike to both sides): {', '.join(coverage)}. "
        if coverage
        else ""
    )
    return [
        "Accuracy on the test split in per cent, mean ± standard deviation over seeds. The epoch is chosen on the "
        "validation split; only the choice by its worst group needs group labels, whatever the method itself needs.",
        "",
        "Differences are of the worst group, paired by seed (which fixes initial weights, order of batches and, where "
        "a bed is built by seed, its splits): mean [95 % percentile bootstrap interval over seeds] (each seed's "
        f"difference). The intervals speak of other seeds on the same data, not of other test images. {seeds}"
        f"Fewer than {FEWEST_SEEDS} seeds have no interval.",
        "",
        "CPU time is of the whole training with its evaluations, against ERM on the same seeds.",
    ]


def _chosen(rule: str) -> str:
    """Which epoch ``rule`` takes, after the word."""
    if rule == "last":
        return "the last"
    return f"by {RULES[rule]}" + (" (group labels)" if rule == "worst_group" else "")


def _searches(rows: list[Row]) -> list[str]:
    """What was searched, and what was found for each method."""
    searches = {row.name: search for row in rows if (search := row.sample["options"].get("search"))}
    return [
        *(
            f"* {name}: `{shlex.join(arguments(search['found']))}`, the best of {search['trials']} trials with seed "
            f"{search['seed']} by validation's {RULES[search['rule']]}"
            for name, search in searches.items()
        ),
        *([""] if searches else []),
    ]


def _overview(rows: list[Row]) -> list[str]:
    head = ["method", "labels in training", "labels in validation", "seeds"]
    head += [f"worst group, epoch {_chosen(rule)}" for rule in RULES] + ["CPU time"]
    body = []
    for row in rows:
        used = row.sample["run"].get("labels_used", {}) if row.runs else {}
        erm = row if row.runs and is_erm(row.sample) else reference(row, rows, is_erm)
        cells = [row.name, used.get("training", "–"), used.get("validation", "–"), str(len(row.runs))]
        cells += [mean_and_spread(list(row.worst(rule).values())) for rule in RULES]
        body.append([*cells, _cpu_ratio(row, erm)])
    return _table(head, body)


def _cpu_ratio(row: Row, erm: Row | None) -> str:
    seconds = [{s: run["run"].get("cpu_seconds") for s, run in r.runs.items()} for r in (row, erm or row)]
    ratios = [seconds[0][s] / seconds[1][s] for s in seconds[0] if seconds[0][s] and seconds[1].get(s)]
    return f"× {np.mean(ratios):.1f}" if ratios and erm else "–"


def _groups(rows: list[Row], rule: str) -> list[str]:
    """Averages and each group, with the group's size in the head."""
    sizes: dict[str, set[int]] = {}
    for run in (run for row in rows for run in row.runs.values() if rule in run["selections"]):
        for name, group in run["selections"][rule]["test"].get("groups", {}).items():
            sizes.setdefault(name, set()).add(group["size"])
    summary = {
        "average": "accuracy",
        "train-weighted average": "train_weighted_accuracy",
        "worst class": "worst_class_accuracy",
        "worst group": WORST,
    }
    head = ["method", *summary, *(f"{name} (n = {'/'.join(map(str, sorted(n)))})" for name, n in sizes.items())]
    body = []
    for row in rows:
        figures = [row.figures(rule, lambda test, key=key: test.get(key)) for key in summary.values()]
        figures += [
            row.figures(rule, lambda test, name=name: test.get("groups", {}).get(name, {}).get("accuracy"))
            for name in sizes
        ]
        body.append([row.name, *(mean_and_spread(list(by_seed.values())) for by_seed in figures)])
    return _table(head, body)


def _differences_table(rows: list[Row]) -> list[str]:
    references = {"ERM": is_erm, "`constant`": is_constant}
    head = ["method", *(f"minus {name}, epoch {_chosen(rule)}" for name in references for rule in SIDES)]
    body = []
    for row in rows:
        others = [reference(row, rows, is_one) for is_one in references.values()]
        cells = [
            _difference(paired_difference(row.worst(rule), other.worst(rule)) if other else None)
            for other in others
            for rule in SIDES
        ]
        body.append([row.name, *cells])
    return _table(head, body)


def _difference(difference: PairedDifference | None) -> str:
    if difference is None:
        return "–"
    interval = f" [{', '.join(map(_signed, difference.interval))}]" if difference.interval else ""
    return f"{_signed(difference.mean)}{interval} ({', '.join(map(_signed, difference.by_seed.values()))})"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _named(line: Line) -> str:
    return f"{line['bed']}, {line['method']}, seed {line['seed']}:"


def _conditions(line: Line) -> dict[str, Any]:
    """All that must be the same for two runs to be averaged."""
    run = line["run"]
    machine = {key: run.get(key) for key in ("versions", "device", "machine", "processes")}
    # what a preset stood for when the run was made
    preset = {key: run[key] for key in PRESET_KEYS if key in run}
    return {"options": line.get("options", {}), "preset": preset, "threads": line.get("threads"), **machine}


def _shared(line: Line) -> dict[str, Any]:
    """All that must be the same for two methods to be compared: the bed's options, the search's effort, the machine."""
    conditions = _conditions(line)
    del conditions["preset"]
    options = conditions.pop("options")
    search = {key: value for key, value in options.get("search", {}).items() if key != "found"}
    return {"bed": options.get("bed"), "search": search, **conditions}


def _without_control(line: Line) -> dict[str, Any]:
    return {key: value for key, value in line["options"]["method"].items() if key != "control"}


def _differences(conditions: list[dict[str, Any]]) -> list[str]:
    flat = [_flat(condition) for condition in conditions]
    keys = dict.fromkeys(key for condition in flat for key in condition)
    values = {key: dict.fromkeys(str(condition.get(key, "not set")) for condition in flat) for key in keys}
    return [f"{key} {' / '.join(different)}" for key, different in values.items() if len(different) > 1]


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key} ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _text(conditions: dict[str, Any]) -> str:
    return json.dumps(conditions, sort_keys=True)
