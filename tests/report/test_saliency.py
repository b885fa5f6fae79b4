"""Maps of models whose attention is known, and shares worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.conftest import smooth_network
from tests.report.models import LABELS, Looker
from ule_hf.backbones import load_backbone
from ule_hf.errors import UleError
from ule_hf.report.saliency import area, blurred, expected_gradients, saliency, share_on_object

CORNER = (slice(0, 2), slice(0, 2))


class Wrapped(nn.Module):
    """A module that gives logits, as a transformers classifier."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.network(pixel_values))


@pytest.mark.parametrize("kind", ["gradient", "path"])
def test_the_map_is_the_region_that_the_model_sees(kind):
    images = torch.randn(3, 3, 8, 8)
    maps = saliency(Looker(CORNER), images, kind, references=torch.randn(3, 2, 3, 8, 8))
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[CORNER] = False
    assert maps.shape == (3, 8, 8) and (maps[:, outside] == 0).all()
    assert maps[:, ~outside].amax(dim=1).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("grid", "seen"), [((2, 2), [[1, 0], [0, 0]]), ((4, 2), [[1, 0], [0, 0], [0, 0], [0, 0]])])
def test_cells_of_a_grid(grid, seen):
    images = torch.randn(2, 3, 8, 8)
    maps = saliency(Looker(CORNER), images, "path", references=-images[:, None], grid=grid)
    assert maps.tolist() == [seen, seen]


def test_a_model_that_sees_nothing_has_a_map_of_nothing():
    deaf = Looker(CORNER, slope=0.0)
    images = torch.randn(2, 3, 8, 8)
    for kind in ("gradient", "path"):
        assert not saliency(deaf, images, kind, references=images[:, None]).any()


def test_expected_gradients_sum_to_the_change_of_the_log_probability():
    network = Wrapped(smooth_network())
    images, references = torch.randn(2, 2, 4, 4).double(), torch.randn(2, 3, 2, 4, 4).double()
    log_prob = network(images).logits.log_softmax(1)
    predicted = log_prob.argmax(1)
    ends = torch.stack([network(references[i]).logits.log_softmax(1)[:, predicted[i]].mean() for i in range(2)])
    of_model = expected_gradients(network, images, predicted, references).flatten(1).sum(1)
    expected = ends - log_prob.gather(1, predicted[:, None]).squeeze(1)
    torch.testing.assert_close(of_model, expected, atol=2e-3, rtol=2e-3)


def test_many_pictures_at_once_have_the_maps_that_each_has_alone():
    images, references = torch.randn(40, 3, 8, 8), torch.randn(40, 2, 3, 8, 8)
    together = saliency(Looker(CORNER, 0.1), images, "path", references)
    for i in (0, 31, 32, 39):
        alone = saliency(Looker(CORNER, 0.1), images[i : i + 1], "path", references[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_grad_cam_lies_where_the_convolution_saw_something():
    convolution = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(convolution.weight, 1.0)
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[-1.0], [1.0]])
    network = Wrapped(nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))
    images = torch.zeros(2, 1, 9, 9)
    images[0, 0, 1, 1] = images[1, 0, 7, 4] = 1.0
    maps = saliency(network, images, "grad_cam")
    for number, (row, column) in enumerate(((1, 1), (7, 4))):
        assert maps[number, row, column] == 1 and maps[number].sum() == pytest.approx(9, abs=1e-4)


def test_grad_cam_of_a_real_backbone_and_of_one_without_convolutions():
    images = torch.randn(2, 3, 32, 32)
    convolutional, _ = load_backbone("test_resnet", label_names=LABELS, image_size=32)
    maps = saliency(convolutional, images, "grad_cam")
    assert maps.shape == (2, 32, 32) and maps.min() >= 0 and maps.max() <= 1
    transformer, _ = load_backbone("test_vit", label_names=LABELS, model_args={"img_size": 32})
    with pytest.raises(UleError, match="needs convolutions"):
        saliency(transformer, images, "grad_cam")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kind": "lime"}, "'lime' is not known"), ({"kind": "path"}, "needs references")],
)
def test_bad_input(options, message):
    with pytest.raises(UleError, match=message):
        saliency(Looker(CORNER), torch.randn(1, 3, 8, 8), **options)


def test_a_grid_that_does_not_fit():
    with pytest.raises(UleError, match="grid 9x2 does not fit"):
        saliency(Looker(CORNER), torch.randn(1, 3, 8, 8), "gradient", grid=(9, 2))


def test_blurring_takes_the_details_and_leaves_the_mean():
    checkers = (torch.arange(20)[:, None] + torch.arange(20)) % 2 * 2.0 - 1
    assert blurred(checkers.expand(1, 3, 20, 20)).abs().max() < 0.1
    torch.testing.assert_close(blurred(torch.full((1, 3, 20, 20), 0.3)), torch.full((1, 3, 20, 20), 0.3))


def test_share_on_the_object_by_hand():
    """Left half seen, object the upper half plus half of each pixel of the third row: 10 of 16 pixels' worth."""
    maps = torch.zeros(1, 4, 4)
    maps[:, :, :2] = 1.0
    masks = torch.zeros(1, 4, 4)
    masks[:, :2], masks[:, 2] = 1.0, 0.5
    assert share_on_object(maps, masks).tolist() == [5 / 8] and area(masks).tolist() == [10 / 16]
