"""Of benchmarks/student_attribution.py: what it measures is what it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.student_attribution import AskedElsewhere
from ule_hf.backbones import load_backbone
from ule_hf.variant import PRESETS, Variant


@pytest.fixture(scope="module")
def pair():
    models = [load_backbone("test_resnet", label_names=["a", "b"], seed=seed, image_size=40)[0] for seed in (0, 1)]
    chosen = {name: PRESETS["exchange"][name] for name in ("attribution", "score", "map_sign", "map_norm", "term")}
    pair = AskedElsewhere(*models, Variant(**chosen, grid=(2, 2)))
    return pair.eval()


@pytest.mark.parametrize("layer", [None, "layer1", "layer4"])
def test_attributions_add_up_to_the_change_of_the_score(pair, layer):
    """With many points on the path, at every layer."""
    images = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    labels, partners = torch.tensor([0, 0, 1, 1]), torch.tensor([2, 3, 0, 1])
    pair.points, pair.layer = 64, layer
    path = (partners, torch.full((4,), 1 / 128))  # the middle of the first of 64 parts
    of_student = pair._path_attribution(pair.student, images, labels, path)
    with torch.no_grad():
        logits = pair.student(pixel_values=images).logits
    score = logits[:, 1] - logits[:, 0]
    change = (score[partners] - score) * torch.tensor([1, 1, -1, -1])
    assert change.abs().min() > 1e-3
    torch.testing.assert_close(of_student.flatten(1).sum(dim=1), change, rtol=0.02, atol=1e-3)
