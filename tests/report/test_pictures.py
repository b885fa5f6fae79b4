"""What is drawn: looked at pixel by pixel, and without colour."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from ule_hf.report.pictures import COLOURS, Explained, View, draw, half_level, shown, strongest_region

LIGHTNESS = np.array([0.2126, 0.7152, 0.0722])


def explained(student_map: np.ndarray, teacher_map: np.ndarray, truth: str | None = None) -> Explained:
    image = np.full((32, 32, 3), 0.5)
    views = [
        View("student", student_map, {"cat": 0.9, "dog": 0.1}, truth),
        View("teacher", teacher_map, {"cat": 0.004, "dog": 0.996}, truth),
    ]
    return Explained("rex.jpg", image, views, "How the maps were made. And what the line is.")


def panels(figure) -> list[np.ndarray]:
    """Lightness of the pixels inside each panel, without its frame."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    grey = np.asarray(canvas.buffer_rgba())[..., :3] / 255 @ LIGHTNESS
    found = []
    for axis in figure.axes[:-1]:
        x0, y0, x1, y1 = (round(v) for v in axis.get_window_extent().extents)
        found.append(grey[len(grey) - y1 + 4 : len(grey) - y0 - 4, x0 + 4 : x1 - 4])
    return found


def test_each_map_is_darkest_where_it_is_strongest_and_readable_in_grey():
    left, right = np.zeros((2, 4, 4))
    left[:, 0] = right[:, 3] = 1.0
    picture, student, teacher = panels(draw(explained(left, right)))
    third = student.shape[1] // 4 - 8  # inside the outermost column, off its line
    assert student[:, :third].mean() < student[:, -third:].mean() - 0.4
    assert teacher[:, -third:].mean() < teacher[:, :third].mean() - 0.4
    assert np.ptp(picture) < 0.02


def test_the_colours_are_ordered_in_lightness():
    steps = np.diff(COLOURS(np.linspace(0, 1, 64))[:, :3] @ LIGHTNESS)
    assert (steps < 0).all()


def test_both_predictions_and_the_caption_are_written_on_it():
    written = [text.get_text() for text in draw(explained(np.eye(4), np.eye(4))).findobj(Text)]
    assert "student: cat 90 %\ndog 10 %" in written and "teacher: dog >99 %\ncat <1 %" in written
    assert "How the maps were made.\nAnd what the line is." in written
    judged = [text.get_text() for text in draw(explained(np.eye(4), np.eye(4), truth="dog")).findobj(Text)]
    assert "student:\ncat 90 %, wrong" in judged and "teacher:\ndog >99 %, right" in judged


def test_the_alt_text_says_what_is_seen():
    top, nothing = np.zeros((2, 6, 6))
    top[0, :] = 1.0
    assert explained(top, nothing).alt_text() == (
        "rex.jpg, and where each model looks. The student says cat 90 %; its map is strongest at the top left. "
        "The teacher says dog >99 %; its map is strongest nowhere."
    )


@given(st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_the_strongest_region_is_that_of_the_only_bright_pixel(pixel):
    values = np.zeros((6, 6))
    values[pixel] = 1.0
    vertical, horizontal = ("top", "", "bottom")[pixel[0] // 2], ("left", "", "right")[pixel[1] // 2]
    words = strongest_region(values)
    assert words == (f"at the {f'{vertical} {horizontal}'.strip()}" if vertical or horizontal else "in the middle")


@given(arrays(float, (5, 4), elements=st.sampled_from([0.0, 1.0, 2.0, 4.0, 7.0])).filter(lambda values: values.any()))
def test_the_line_encloses_the_smallest_area_with_half(values):
    inside = values > half_level(values)
    assert values[inside].sum() >= values.sum() / 2
    without_lowest = values > values[inside].min()
    assert values[without_lowest].sum() < values.sum() / 2


def test_a_map_of_nothing_is_drawn_without_a_line():
    _, student, _ = panels(draw(explained(np.zeros((32, 32)), np.eye(32))))
    assert np.ptp(student) < 0.02


@pytest.mark.parametrize("size", [(32, 32), (30, 45)])
def test_cells_cover_the_pixels_that_were_summed_in_them(size):
    cells = np.arange(1.0, 13.0).reshape(3, 4)
    on_pixels = shown(cells, *size)
    assert on_pixels.shape == size and on_pixels[0, 0] == 1 and on_pixels[-1, -1] == 12
    assert on_pixels[size[0] // 2, 0] == cells[1, 0]
