"""One step of each preset on a tiny model of every backbone family, as shipped: fused attention included."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ule_hf.backbones import load_backbone
from ule_hf.pair import StudentTeacher
from ule_hf.variant import Variant

LABELS = ["a", "b", "c"]
PRESETS = {
    "paper": Variant(),
    "path": Variant(attribution="path", score="difference", grid=(4, 4), term="overlap"),
}
SWIN = {"img_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]}
TIMM = {
    "test_resnet": None,
    "test_vit": None,
    "test_convnext": None,
    "test_efficientnet": None,
    "mobilenetv2_100": None,
    "swin_tiny_patch4_window7_224": SWIN,
}


def transformers_folder(name: str, folder) -> str:
    """A tiny transformers classifier, saved as a user would have it."""
    if name == "transformers ViT":
        config = ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=64,
            num_labels=3,
        )
        model = ViTForImageClassification(config)
        assert model.config._attn_implementation == "sdpa"
    else:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
        model = ResNetForImageClassification(config)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", [*TIMM, "transformers ViT", "transformers ResNet"])
def test_a_step_of_every_family(name, preset, tmp_path):
    source = transformers_folder(name, tmp_path) if name.startswith("transformers") else name
    models = []
    for seed in (0, 1):
        model_args = json.loads(json.dumps(TIMM.get(name)))
        size = None if model_args or source != name else 64
        models.append(load_backbone(source, label_names=LABELS, seed=seed, image_size=size, model_args=model_args)[0])
    pair = StudentTeacher(*models, PRESETS[preset]).train()
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    output = pair(images, labels, unlearning_weight=10.0)
    assert output.unlearning_loss > 0
    (of_term,) = torch.autograd.grad(
        output.unlearning_loss, [next(iter(pair.teacher.parameters()))], retain_graph=True, allow_unused=True
    )
    assert of_term is not None and of_term.abs().sum() > 0
    output.loss.backward()
    for parameter_name, parameter in pair.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name
