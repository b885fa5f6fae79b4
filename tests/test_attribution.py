from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import smooth_network
from ule_hf.attribution import (
    attribution_map,
    class_score,
    draw_path,
    input_gradient,
    mix,
    normalise,
    path_attribution,
    sum_over_grid,
)
from ule_hf.errors import UleError


def test_path_attribution_is_complete():
    """Averaged over the path and summed over the picture it is the change of the score between the two ends."""
    network, images = smooth_network(), torch.randn(4, 2, 4, 4, dtype=torch.float64)
    labels, partners = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 3, 2])

    def score(at: torch.Tensor) -> torch.Tensor:
        return class_score(network(at), labels, "difference", labels[partners])

    midpoints = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    total = torch.zeros(4, dtype=torch.float64)
    for point in midpoints:
        z, difference = mix(images, partners, point.expand(4))
        z.requires_grad_()
        total += path_attribution(score(z), z, difference).flatten(1).sum(1) / 400
    torch.testing.assert_close(total, score(images[partners]) - score(images), rtol=1e-4, atol=1e-6)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
)
def test_partners_are_of_another_class_and_repeatable(labels, seed):
    labels = torch.tensor(labels)
    path = draw_path(labels, torch.Generator().manual_seed(seed))
    if len(labels.unique()) == 1:
        assert path is None
        return
    partners, points = path
    assert (labels[partners] != labels).all()
    assert ((points >= 0) & (points < 1)).all()
    again = draw_path(labels, torch.Generator().manual_seed(seed))
    assert torch.equal(partners, again[0]) and torch.equal(points, again[1])


def test_drawing_a_path_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    draw_path(torch.tensor([0, 1, 2]), torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())


@settings(deadline=None)
@given(data=st.data(), height=st.integers(1, 9), width=st.integers(1, 9))
def test_the_cells_of_a_grid_partition_the_picture(data, height, width):
    grid = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    attribution = torch.randn(2, 3, height, width, dtype=torch.float64)
    cells = sum_over_grid(attribution, grid)
    assert cells.shape == (2, grid[0] * grid[1])
    torch.testing.assert_close(cells.sum(1), attribution.flatten(1).sum(1))
    sizes = sum_over_grid(torch.ones(1, 1, height, width), grid)
    assert sizes.min() >= 1 and sizes.sum() == height * width


def test_a_grid_finer_than_the_picture_is_refused():
    with pytest.raises(UleError, match="8x8 does not fit pictures of 4x4"):
        sum_over_grid(torch.zeros(1, 1, 4, 4), (8, 8))


def test_scores():
    logits = torch.randn(5, 3, dtype=torch.float64)
    labels, partner_labels = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([2, 0, 1, 2, 1])
    rows = torch.arange(5)
    torch.testing.assert_close(class_score(logits, labels, "predicted"), logits.max(1).values)
    torch.testing.assert_close(class_score(logits, labels, "label"), logits[rows, labels])
    torch.testing.assert_close(class_score(logits, labels, "log_prob"), logits.softmax(1)[rows, labels].log())
    torch.testing.assert_close(
        class_score(logits, labels, "difference", partner_labels),
        logits[rows, partner_labels] - logits[rows, labels],
    )
    with pytest.raises(UleError, match="needs partner_labels"):
        class_score(logits, labels, "difference")
    assert class_score(logits.bfloat16(), labels).dtype == torch.float32


def test_input_gradient_is_each_samples_own():
    network, images = smooth_network(), torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2])
    together = input_gradient(class_score(network(images), labels, "label"), images)
    for i in range(3):
        alone = images[i : i + 1].detach().requires_grad_()
        expected = torch.autograd.grad(network(alone)[0, labels[i]], alone)[0]
        torch.testing.assert_close(together[i : i + 1], expected)


@pytest.mark.parametrize("norm", ["max", "sum", "l2"])
def test_a_map_of_zeros_is_not_divided_by(norm):
    maps = torch.tensor([[0.0, 0.0], [1.0, 3.0]], requires_grad=True)
    normalised = normalise(maps, norm)
    assert normalised[0].tolist() == [0, 0]
    normalised.square().sum().backward()
    assert torch.isfinite(maps.grad).all() and maps.grad[0].tolist() == [0, 0]


@pytest.mark.parametrize("norm", ["max", "sum", "l2", "rank"])
@pytest.mark.parametrize("grid", [None, (2, 1), (4, 4)])
def test_maps_do_not_depend_on_the_scale_of_the_score(norm, grid):
    attribution = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        attribution_map(attribution, grid, "abs", norm), attribution_map(1e-4 * attribution, grid, "abs", norm)
    )
