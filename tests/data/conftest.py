from __future__ import annotations

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessor,
    ResNetConfig,
)

from ule_hf.data import spawrious
from ule_hf.data.urbancars_build.segment import CarSegmenter


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, for datasets' builders and for unpacked archives."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture
def small_spawrious(monkeypatch, tmp_path):
    """A tree with 20 images in each folder, and a benchmark that is composed of so many."""
    monkeypatch.setattr(spawrious, "FOLDER_SIZE", 20)
    monkeypatch.setattr(spawrious, "IMAGE_SIZE", (2, 2))
    monkeypatch.setattr(spawrious, "_SPURIOUS", (19, 15))
    monkeypatch.setattr(spawrious, "PUBLISHED", {name: spawrious._published(name) for name in spawrious.COMBINATIONS})
    return _write_spawrious(tmp_path / "spawrious224", 20)


def _write_spawrious(root, size):
    """All folders of the archive with ``size`` pictures each, numbered as there: 1 .. size, without leading zeros."""
    rng = np.random.default_rng(0)
    for half in "01":
        for location in spawrious.LOCATIONS:
            for breed in spawrious.LABELS:
                folder = root / half / location / breed
                folder.mkdir(parents=True)
                for i in range(1, size + 1):
                    pixels = rng.integers(0, 255, (2, 2, 3), dtype=np.uint8)
                    PIL.Image.fromarray(pixels).save(folder / f"{location}_{breed}_{i}.png")
    return root


@pytest.fixture(scope="module")
def segmenter():
    """A tiny MaskFormer whose weights are random, and whose classes are not: every segment is a car."""
    torch.manual_seed(0)
    detr = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5}
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    config = MaskFormerConfig(
        backbone_config=ResNetConfig(**sizes, out_features=["stage1", "stage2", "stage3", "stage4"]),
        decoder_config=DetrConfig(**detr, **heads),
        fpn_feature_size=32,
        mask_feature_size=32,
        id2label={0: "person", 1: "car", 2: "truck"},
    )
    model = MaskFormerForInstanceSegmentation(config)
    model.class_predictor.bias.data[1] = 20.0
    processor = MaskFormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}, size_divisor=32)
    return CarSegmenter(model, processor)
