"""`ule-hf report`: one HTML file with the tables, charts and pictures of a comparison, and nothing from elsewhere."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

import ule_hf
from ule_hf.comparison.plan import arguments
from ule_hf.comparison.run import Line, latest
from ule_hf.comparison.statistics import FEWEST_SEEDS, mean_and_spread, most_coverage, paired_difference
from ule_hf.comparison.table import RULES, WORST, Row, gather, is_constant, is_erm, reference
from ule_hf.errors import UleError
from ule_hf.report.charts import Picture, bars, cost_against_gain, curves, signed
from ule_hf.report.runs import SAVED, Runs, collect
from ule_hf.report.walls import Share, Wall, by_bed, model_folders, shares, test_images, wall

logger = logging.getLogger(__name__)

SUMMARY = {"accuracy": "average", "train_weighted_accuracy": "average, weighted as in training", WORST: "worst group"}
#: Rule -> how the epoch was chosen, and what labels that takes.
CHOSEN_BY = {
    "worst_class": "Epoch chosen by validation's worst class (no group label)",
    "average": "Epoch chosen by validation's average (no group label)",
    "worst_group": "Epoch chosen by validation's worst group (takes group labels in validation)",
    "last": "Last epoch (no choice)",
    SAVED: "The epoch that each run saved",
}
KINDS = {"gradient": "gradient", "path": "path", "grad_cam": "Grad-CAM"}


@dataclass
class Table:
    """A head, rows of cells, and what it shows."""

    caption: str
    head: list[str]
    body: list[list[str]]


@dataclass
class Bed:
    """All that the page says of one dataset."""

    name: str
    options: str
    group_sizes: Table | None
    overview: Table
    rules: list[Table]
    bars: list[Picture]
    bars_rule: str
    curves: list[Picture]
    cost: Picture | None
    shares: Table | None = None
    walls: list[Wall] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def report(
    results: Sequence[str | Path],
    output: str | Path,
    models: str | Path | None = None,
    pictures: int = 6,
    images: int = 16,
) -> Path:
    """Write ``output/index.html`` about ``results``; returns its path.

    Args:
        results: see :func:`ule_hf.report.runs.collect`.
        models: what a comparison kept, ``models/bed/method/seed``; for walls of pictures and shares on the object.
        pictures: of each wall.
        images: test images of each run for the shares.

    Raises:
        UleError: no results, no models where some are named, or an output that is no folder.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise UleError(f"--output {output} is a file; name a folder")
    if pictures < 1 or images < 1:
        raise UleError(f"--pictures {pictures} --images {images}: give 1 or more of each")
    runs = collect(results)
    folders = dict(by_bed(model_folders(Path(models)))) if models else {}
    rows, problems = gather(runs.lines, runs.expected)
    beds = [_bed(name, [row for row in rows if row.bed == name]) for name in dict.fromkeys(row.bed for row in rows)]
    for bed in beds:
        _look(bed, folders.pop(bed.name, []), pictures, images)
    problems += [f"the models of {name} belong to no run of these results, and are not shown" for name in folders]
    text = (
        _environment()
        .get_template("report.html")
        .render(
            beds=beds,
            sources=runs.sources,
            problems=runs.problems + problems,
            failed=_failed(runs),
            counts=_counts(runs, rows),
            versions=_versions(rows),
            coverage=_coverage(rows),
            fewest=FEWEST_SEEDS,
            version=version("ule_hf"),
        )
    )
    output.mkdir(parents=True, exist_ok=True)
    page = output / "index.html"
    page.write_text(text, encoding="utf-8")
    return page


def _environment() -> Environment:
    templates = Path(ule_hf.__file__).parent / "templates"
    return Environment(
        loader=FileSystemLoader(templates),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _bed(name: str, rows: list[Row]) -> Bed:
    with_runs = [row for row in rows if row.runs]
    rules = [rule for rule in CHOSEN_BY if any(row.figures(rule, lambda test: 1.0) for row in with_runs)]
    shown = "worst_class" if "worst_class" in rules else (rules or [SAVED])[0]
    groups = _groups(with_runs)
    drawn = [(row, curves(row, reference(row, rows, is_erm))) for row in with_runs]
    return Bed(
        name=name,
        options=_options(with_runs),
        group_sizes=_group_sizes(with_runs, groups),
        overview=_overview(rows, rules),
        rules=[_rule(rows, rule, groups) for rule in rules],
        bars=[
            bars(f"{group} (n = {size})", {row.name: row.figures(shown, _accuracy_of(group)) for row in with_runs})
            for group, size in groups.items()
        ],
        bars_rule=CHOSEN_BY[shown],
        curves=[picture for _, picture in drawn if picture],
        cost=cost_against_gain([_cost_and_gain(row, rows, shown) for row in with_runs]),
    )


def _options(rows: list[Row]) -> str:
    return " ".join(arguments(rows[0].sample.get("options", {}).get("bed", {}))) if rows else ""


def _accuracy_of(group: str) -> Callable[[dict], float | None]:
    return lambda test: test.get("groups", {}).get(group, {}).get("accuracy")


def _groups(rows: list[Row]) -> dict[str, str]:
    """Each test group's size; of several, all."""
    sizes: dict[str, set[int]] = {}
    for row in rows:
        for run in row.runs.values():
            for selection in run["selections"].values():
                for name, group in selection["test"].get("groups", {}).items():
                    sizes.setdefault(name, set()).add(group["size"])
    return {name: "/".join(map(str, sorted(of_group))) for name, of_group in sizes.items()}


def _group_sizes(rows: list[Row], groups: dict[str, str]) -> Table | None:
    trained: dict[str, set[int]] = {}
    for run in (run for row in rows for run in row.runs.values()):
        for name, size in run.get("train_group_sizes", {}).items():
            trained.setdefault(name, set()).add(size)
    if not groups:
        return None
    body = [[n, "/".join(map(str, sorted(trained.get(n, [])))) or "–", size] for n, size in groups.items()]
    return Table("Images of each group", ["group", "training", "test"], body)


def _overview(rows: list[Row], rules: list[str]) -> Table:
    """Worst group under every rule side by side, with the labels that each method saw and what it cost."""
    head = ["method", "labels in training", "labels in validation", "seeds finished"]
    head += [f"worst group, {_short(rule)}" for rule in rules] + ["CPU time"]
    body = []
    for row in rows:
        used = row.sample["run"].get("labels_used", {}) if row.runs else {}
        costs, _ = _cost_and_gain(row, rows, "last")[1:]
        times = f"× {np.mean(list(costs.values())):.1f}" if costs else "–"
        cells = [row.name, used.get("training", "–"), used.get("validation", "–"), _seeds(row)]
        body.append([*cells, *(mean_and_spread(list(row.worst(rule).values())) for rule in rules), times])
    return Table("Worst group, by how the epoch was chosen", head, body)


def _short(rule: str) -> str:
    if rule in ("last", SAVED):
        return {"last": "last epoch", SAVED: "as saved"}[rule]
    return f"chosen by {RULES[rule]}{' (group labels)' if rule == 'worst_group' else ''}"


def _seeds(row: Row) -> str:
    return f"{len(row.runs)} ({', '.join(map(str, sorted(row.runs)))})" if row.runs else "none"


def _rule(rows: list[Row], rule: str, groups: dict[str, str]) -> Table:
    """Every figure under one rule: averages, worst group, differences to the controls, each group with its size."""
    controls = {"ERM": is_erm, "constant": is_constant}
    head = ["method", *SUMMARY.values(), *(f"worst group minus {name}" for name in controls)]
    head += [f"{name} (n\u00a0=\u00a0{size})" for name, size in groups.items()]
    body = []
    for row in (row for row in rows if row.runs):
        figures = [row.figures(rule, lambda test, key=key: test.get(key)) for key in SUMMARY]
        others = [reference(row, rows, is_one) for is_one in controls.values()]
        differences = [_difference(row, other, rule) for other in others]
        of_groups = [row.figures(rule, _accuracy_of(group)) for group in groups]
        cells = [mean_and_spread(list(by_seed.values())) for by_seed in figures]
        cells += [*differences, *(mean_and_spread(list(by_seed.values())) for by_seed in of_groups)]
        body.append([row.name, *cells])
    return Table(CHOSEN_BY[rule], head, body)


def _difference(row: Row, other: Row | None, rule: str) -> str:
    difference = paired_difference(row.worst(rule), other.worst(rule)) if other else None
    if difference is None:
        return "–"
    if difference.interval is None:
        return f"{signed(difference.mean)} (of\u00a0{len(difference.by_seed)})"
    low, high = map(signed, difference.interval)
    return f"{signed(difference.mean)} [{low},\u00a0{high}]"


def _cost_and_gain(row: Row, rows: list[Row], rule: str) -> tuple[str, dict[int, float], dict[int, float]]:
    erm = row if row.runs and is_erm(row.sample) else reference(row, rows, is_erm)
    if erm is None:
        return row.name, {}, {}
    seconds = [{seed: run["run"].get("cpu_seconds") for seed, run in r.runs.items()} for r in (row, erm)]
    costs = {seed: own / seconds[1][seed] for seed, own in seconds[0].items() if own and seconds[1].get(seed)}
    difference = paired_difference(row.worst(rule), erm.worst(rule))
    return row.name, costs, difference.by_seed if difference else {}


def _look(bed: Bed, folders: list, pictures: int, images: int) -> None:
    """Walls and shares of the models of a bed; what cannot be shown becomes a problem of the bed."""
    found: list[Share] = []
    shown: set[str] = set()
    for folder in folders:
        logger.info("looking through the models of %s, %s, seed %d", *folder[1:])
        try:
            test, data_args = test_images(folder)
            found += shares(folder, test, data_args, images)
            if folder.method not in shown and (one := wall(folder, test, pictures)):
                bed.walls.append(one)
            shown.add(folder.method)  # the first seed's wall stands for the method
        except UleError as error:
            bed.problems.append(f"{folder.method}, seed {folder.seed}: no pictures, because {error}")
    bed.shares = _shares(found) if found else None


def _shares(found: list[Share]) -> Table:
    names = dict.fromkeys((share.method, share.model) for share in found)
    head = ["method", "model", "seeds", *(f"{name}, %" for name in KINDS.values()), "object's area, %"]
    body = []
    for method, model in names:
        of_model = [share for share in found if (share.method, share.model) == (method, model)]
        values = {kind: [s.by_kind[kind] for s in of_model if s.by_kind[kind] is not None] for kind in KINDS}
        cells = [mean_and_spread(values[kind]) for kind in KINDS]
        body.append([method, model, str(len(of_model)), *cells, mean_and_spread([s.area for s in of_model])])
    caption = f"Share of attribution on the object, over {found[0].images} test images of each run"
    return Table(caption, head, body)


def _failed(runs: Runs) -> list[Line]:
    return [line for line in latest(runs.lines) if line["status"] != "finished"]


def _counts(runs: Runs, rows: list[Row]) -> dict[str, int]:
    lines = latest(runs.lines)
    return {"finished": sum(line["status"] == "finished" for line in lines), "failed": len(_failed(runs)),
            "methods": len({row.method for row in rows}), "datasets": len({row.bed for row in rows})}  # fmt: skip


def _versions(rows: list[Row]) -> list[str]:
    """Each set of versions that runs were made with, and how many runs."""
    counts: dict[str, int] = {}
    for run in (run for row in rows for run in row.runs.values()):
        versions = ", ".join(f"{name} {number}" for name, number in run["run"].get("versions", {}).items())
        counts[versions or "not recorded"] = counts.get(versions or "not recorded", 0) + 1
    return [f"{count} runs with {versions}" for versions, count in counts.items()]


def _coverage(rows: list[Row]) -> list[str]:
    counts = sorted({len(row.runs) for row in rows if len(row.runs) >= FEWEST_SEEDS})
    return [f"{count} seeds {100 * most_coverage(count):.0f} %" for count in counts]


def report_main(argv: list[str]) -> str:
    """``ule-hf report``; returns where the page was written."""
    parser = argparse.ArgumentParser("ule-hf report", description="Write one HTML page about a comparison.")
    parser.add_argument("results", nargs="+", help="Files of ule-hf compare (.jsonl), output folders, folders of both.")
    parser.add_argument("--output", default="report", help="Folder for index.html.")
    parser.add_argument("--models", help="What ule-hf compare --keep_models kept; for pictures and shares on objects.")
    parser.add_argument("--pictures", type=int, default=6, help="Pictures of each method on each dataset.")
    parser.add_argument("--images", type=int, default=16, help="Test images of each run for the shares on objects.")
    args = parser.parse_args(argv)
    return str(report(args.results, args.output, args.models, args.pictures, args.images))
