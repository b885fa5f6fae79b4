"""The charts of a comparison, each a small SVG that a page can put in a row or a column. Nothing hangs on colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ule_hf.comparison.statistics import mean_and_spread
from ule_hf.comparison.table import WORST, Row

BySeed = Mapping[int, float]
WIDTH = 3.6  # inches; a phone's width holds one chart
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ule_hf",
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
}
DARK, LIGHT = "#333333", "#b8c4d6"


@dataclass(frozen=True)
class Picture:
    """An image of the page: a data URI and what it shows, in words."""

    uri: str
    alt: str
    caption: str = ""


def embedded(figure: Figure, kind: str = "svg") -> str:
    """A figure as a data URI. ``kind``: ``svg`` for charts, ``webp`` for photographs."""
    buffer = io.BytesIO()
    if kind == "svg":
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        media_type = "image/svg+xml"
    else:
        figure.savefig(buffer, format=kind, dpi=110, pil_kwargs={"quality": 85})
        media_type = f"image/{kind}"
    return f"data:{media_type};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def bars(title: str, figures: Mapping[str, BySeed]) -> Picture:
    """A bar for each method: mean over seeds, standard deviation, each seed as a ring, and the figure in print."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.55 + 0.23 * len(figures)), layout="constrained")
        axis = figure.subplots()
        for place, by_seed in enumerate(figures.values()):
            values = 100 * np.array(list(by_seed.values()))
            axis.text(104, place, mean_and_spread(list(by_seed.values())), va="center", fontsize=7)
            if values.size:
                spread = values.std(ddof=1) if values.size > 1 else None
                axis.barh(place, values.mean(), height=0.7, color=LIGHT, edgecolor=DARK, linewidth=0.6)
                if spread is not None:
                    axis.errorbar(values.mean(), place, xerr=spread, color=DARK, linewidth=1, capsize=2)
                axis.plot(values, [place] * len(values), "o", ms=3, mfc="white", mec="black", mew=0.7, clip_on=False)
        axis.set(xlim=(0, 100), ylim=(len(figures) - 0.4, -0.6), title=title, xlabel="accuracy, %")
        axis.set_yticks(range(len(figures)), list(figures))
        axis.tick_params(axis="y", length=0)
        shown = "; ".join(f"{name} {mean_and_spread(list(by_seed.values()))}" for name, by_seed in figures.items())
        return Picture(embedded(figure), f"Accuracy in {title}, per cent, by method: {shown}.")


def curves(row: Row, erm: Row | None) -> Picture | None:
    """Worst group of the test split after each epoch: thin a seed, thick their mean, dashed ERM's mean.

    Triangles stand where a rule chose its epoch: ▼ by the worst class, ▲ by the worst group of validation. Dotted: the
    student, or a first stage. None where no run has figures of its epochs.
    """
    seeds = {seed: run["curve"] for seed, run in row.runs.items() if run.get("curve")}
    if not any(_series(curve, "test") for curve in seeds.values()):
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.1), layout="constrained")
        axis = figure.subplots()
        for seed, curve in seeds.items():
            axis.plot(*_line(_series(curve, "test")), color=DARK, linewidth=0.6, alpha=0.6)
            axis.plot(*_line(_series(curve, "test", stage=1)), color=DARK, linewidth=0.6, linestyle=":")
            for rule, marker in (("worst_class", "v"), ("worst_group", "^")):
                chosen = row.runs[seed]["selections"].get(rule)
                if chosen and WORST in chosen["test"]:
                    axis.plot(chosen["epoch"], 100 * chosen["test"][WORST], marker, mfc="white", mec="black", ms=5)
        mean = _mean([_series(curve, "test") for curve in seeds.values()])
        axis.plot(*_line(mean), color="black", linewidth=2, marker="." if len(mean) == 1 else None, label=row.name)
        if student := _mean([_series(curve, "student_test") for curve in seeds.values()]):
            axis.plot(*_line(student), color="black", linewidth=1.2, linestyle=":", label="its student")
        if erm is not None and erm.name != row.name:
            of_erm = _mean([_series(run["curve"], "test") for run in erm.runs.values() if run.get("curve")])
            if of_erm:
                axis.plot(*_line(of_erm), color="#777777", linewidth=1.4, linestyle="--", label=erm.name)
        axis.set(ylim=(-3, 103), title=row.name, xlabel="epoch", ylabel="worst group, %")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False, fontsize=6.5, loc="best", handlelength=2.4)
        values = [100 * value for value in mean.values()]
        alt = (
            f"{row.name}: accuracy of the worst test group over {len(values)} epochs, mean of {len(seeds)} seeds: "
            f"{values[0]:.0f} % at first, {max(values):.0f} % at best, {values[-1]:.0f} % at the end."
        )
        return Picture(embedded(figure), alt)


def cost_against_gain(points: Sequence[tuple[str, BySeed, BySeed]]) -> Picture | None:
    """A letter for each method at its CPU time relative to ERM's and its worst group minus ERM's, means over seeds.

    Args:
        points: (method, seed -> times ERM's CPU time, seed -> difference of accuracy).
    """
    points = [point for point in points if point[1] and point[2]]
    if len(points) < 2:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5 + 0.16 * len(points)), layout="constrained")
        axis = figure.subplots()
        shown, places = [], []
        for number, (name, costs, gains) in enumerate(points):
            cost, gain = np.mean(list(costs.values())), 100 * np.mean(list(gains.values()))
            letter = chr(ord("A") + number)
            beside = sum(abs(cost / c - 1) < 0.06 and abs(gain - g) < 4 for c, g in places)  # would cover one another
            places.append((cost, gain))
            if len(gains) > 1:
                spread = 100 * np.std(list(gains.values()), ddof=1)
                axis.errorbar(cost, gain, yerr=spread, color="#999999", linewidth=0.8, capsize=2, zorder=1)
            shown.append(f"{name}: × {cost:.1f}, {signed(gain / 100)}")
            axis.plot(cost, gain, ".", color="black", ms=3)
            circle = {"boxstyle": "circle,pad=0.2", "fc": "white", "ec": "black", "lw": 0.7}
            place = {"xytext": (11 + 14 * beside, 0), "textcoords": "offset points", "ha": "center", "va": "center"}
            axis.annotate(letter, (cost, gain), **place, bbox=circle, fontsize=7)
            axis.plot([], [], marker=f"${letter}$", ms=6, linestyle="none", color="black", label=shown[-1])
        axis.axhline(0, color="#777777", linewidth=0.8, linestyle="--", zorder=0)
        axis.set(xscale="log", xlabel="CPU time, times ERM's", ylabel="worst group minus ERM's, points")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if str(value)[0] in "235" else "")
        axis.margins(0.12)
        figure.legend(loc="outside lower left", frameon=False, fontsize=7)
        return Picture(embedded(figure), f"CPU time relative to ERM, and worst group minus ERM: {'; '.join(shown)}.")


def signed(value: float) -> str:
    """A difference of shares in points.

    >>> signed(0.125), signed(-0.02)
    ('+12.5', '−2.0')
    """
    return f"{100 * value:+.1f}".replace("-", "−")


def _series(curve: Sequence[dict[str, Any]], split: str, stage: int | None = None) -> dict[float, float]:
    return {
        entry["epoch"]: entry[split][WORST]
        for entry in curve
        if entry.get("stage") == stage and WORST in (entry.get(split) or {})
    }


def _mean(series: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """Over seeds, at the epochs that all of them have: the line has no step that is no seed's."""
    series = [one for one in series if one]
    epochs = sorted(set.intersection(*(set(one) for one in series))) if series else []
    return {epoch: float(np.mean([one[epoch] for one in series])) for epoch in epochs}


def _line(series: Mapping[float, float]) -> tuple[list[float], list[float]]:
    return list(series), [100 * value for value in series.values()]
