"""One picture beside the maps of the models that look at it. Colour-blind safe, and readable in grey.

The picture is shown as the models see it, after resizing and cropping. Under each map lies the picture, pale; dark
is attribution, on one scale for both models, and a line encloses the smallest area that carries half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.floating]
#: Monotone in lightness, so that grey prints and colour-blind eyes see the same order.
COLOURS = colormaps["YlOrBr"]
ADDED_TEXT = {"fontsize": 9, "color": "black"}


@dataclass(frozen=True)
class View:
    """What one model makes of a picture.

    Args:
        name: ``student``, ``teacher``, or a method's name.
        map: ``[rows, columns]`` in [0, 1], of the picture's size or a grid over it.
        probabilities: of each class, by name.
        truth: the right class, where it is known.
    """

    name: str
    map: Array
    probabilities: dict[str, float]
    truth: str | None = None

    @property
    def predicted(self) -> str:
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def says(self) -> str:
        """``waterbird 97 %``, and whether that is wrong, where it is known."""
        verdict = {None: "", self.predicted: ", right"}.get(self.truth, ", wrong")
        return f"{self.predicted} {percent(self.probabilities[self.predicted])}{verdict}"


@dataclass(frozen=True)
class Explained:
    """A picture, ``[H, W, 3]`` in [0, 1], with the views of the models; ``caption`` says how the maps were made."""

    name: str
    image: Array
    views: Sequence[View]
    caption: str
    note: str = field(default="")

    def alt_text(self) -> str:
        """What the figure shows, in words: for those who do not see it, and for the PNG's description."""
        parts = [f"{self.name}{f' ({self.note})' if self.note else ''}, and where each model looks."]
        for view in self.views:
            parts.append(f"The {view.name} says {view.says()}; its map is strongest {strongest_region(view.map)}.")
        return " ".join(parts)


def draw(explained: Explained, scale: float = 2.3, with_caption: bool = True) -> Figure:
    """The picture and a map of each model in a row, with the predictions above and the scale at the right.

    Args:
        scale: width of a panel, in inches.
    """
    height, width = explained.image.shape[:2]
    panels = 1 + len(explained.views)
    lines = max(_title(view).count("\n") + 1 for view in explained.views)
    size = (scale * panels + 0.75, scale * height / width + 0.17 * (lines + 1) + (0.45 if with_caption else 0.05))
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    title = explained.note or "picture"
    axes[0].imshow(explained.image)
    axes[0].set_title(title, **ADDED_TEXT)
    for axis, view in zip(axes[1:], explained.views, strict=True):
        _overlay(axis, explained.image, view.map)
        axis.set_title(_title(view), **ADDED_TEXT)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(ScalarMappable(cmap=COLOURS), ax=list(axes), aspect=12, shrink=0.9, ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=7)
    bar.set_label("of the map's largest value", fontsize=7)
    if with_caption:
        figure.supxlabel(explained.caption.replace(". ", ".\n"), fontsize=7)
    return figure


def _title(view: View) -> str:
    if view.truth is not None:
        return f"{view.name}:\n{view.says()}"
    best = sorted(view.probabilities.items(), key=lambda item: -item[1])[:3]
    return f"{view.name}: " + "\n".join(f"{name} {percent(share)}" for name, share in best)


def _overlay(axis, image: Array, values: Array) -> None:
    height, width = image.shape[:2]
    on_pixels = shown(values, height, width)
    pale = 0.78 + 0.22 * image.mean(axis=2, keepdims=True)
    axis.imshow(pale * COLOURS(on_pixels)[..., :3])
    if np.ptp(on_pixels) > 0:
        framed = np.pad(on_pixels, 1)  # so that the line closes at the picture's edge
        x, y = np.arange(width + 2) - 1, np.arange(height + 2) - 1
        for colour, thickness in (("white", 2.6), ("black", 1.1)):  # a seam, so that the line shows on any ground
            axis.contour(x, y, framed, levels=[half_level(on_pixels)], colors=colour, linewidths=thickness)
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def shown(values: Array, height: int, width: int) -> Array:
    """A map on the picture's pixels: a grid as blocks; a dense map smoothed a little, else its line is a thicket."""
    if values.shape == (height, width):
        smooth = gaussian_filter(values, sigma=min(height, width) / 40)
        return smooth / smooth.max() if smooth.max() > 0 else smooth
    rows, columns = values.shape
    return values[np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)]


def half_level(values: Array) -> float:
    """A level that the highest values which together make half of the sum exceed, and no others.

    >>> float(half_level(np.array([[4.0, 3.0], [2.0, 1.0]])))
    2.5
    """
    ranked = np.sort(values, axis=None)[::-1]
    lowest = ranked[np.searchsorted(np.cumsum(ranked), ranked.sum() / 2)]
    below = values[values < lowest]
    return (lowest + (below.max() if below.size else 0.0)) / 2


def strongest_region(values: Array) -> str:
    """The third of the height and of the width where a map is strongest on average, in words.

    >>> strongest_region(np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    'at the top right'
    >>> strongest_region(np.zeros((2, 2)))
    'nowhere'
    """
    if not values.any():
        return "nowhere"
    rows, columns = values.shape
    sums, counts = np.zeros((2, 3, 3))
    region = (_thirds(rows)[:, None], _thirds(columns)[None])
    np.add.at(sums, region, values)
    np.add.at(counts, region, 1)
    row, column = np.unravel_index((sums / np.maximum(counts, 1)).argmax(), sums.shape)
    if (row, column) == (1, 1):
        return "in the middle"
    return "at the " + " ".join(filter(None, [("top", "", "bottom")[row], ("left", "", "right")[column]]))


def _thirds(size: int) -> NDArray[np.int64]:
    return ((np.arange(size) + 0.5) * 3 / size).astype(int)


def percent(share: float) -> str:
    """``0.974`` -> ``97 %``; what is not quite all or nothing does not read as if.

    >>> percent(0.974), percent(0.9999), percent(0.0002)
    ('97 %', '>99 %', '<1 %')
    """
    if 0.995 <= share < 1:
        return ">99 %"
    if 0 < share < 0.005:
        return "<1 %"
    return f"{100 * share:.0f} %"
