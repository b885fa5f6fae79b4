"""A bed on which plain training falls for the shortcut within a second: 8 × 8 pictures and a tiny ViT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from ule_hf.arguments import MethodArguments, ModelArguments
from ule_hf.config import ULEConfig
from ule_hf.data.shortcuts import correlated, shortcut_dataset
from ule_hf.experiment import fit

LABELS, SHORTCUTS = ("falling", "rising"), ("dark", "bright")


def pictures(correlation: float = 0.95, train: int = 1600, seed: int = 0) -> DatasetDict:
    """Lower half: a faint diagonal stripe under noise, which is the class. Upper half: dark or bright, the shortcut.

    The stripe alone tells at most 85 % of the classes: their means lie 52 apart (13 · √16) in noise of 25. With the
    shortcut, whose log-odds are log 19, the best classifier in distribution is right on a third of the images in which
    it lies: plain training must fall for it, however long it takes.
    """
    rng = np.random.default_rng(seed)
    stripe = np.zeros((4, 8))
    stripe[np.arange(8) % 4, np.arange(8)] = 1
    splits = {}
    for name, n, agreement in (("train", train, correlation), ("validation", 200, 0.5), ("test", 200, 0.5)):
        labels = rng.permutation(np.arange(n) % 2)
        shortcuts = correlated(labels, agreement)
        images = rng.normal(128, 25, (n, 8, 8))
        images[:, 4:] += 13 * np.where(labels[:, None, None] == 1, stripe, stripe[::-1])
        images[:, :4] += np.where(shortcuts == 1, 90, -90)[:, None, None]
        images = np.repeat(images.clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)
        ids = [f"{name}-{i}" for i in range(n)]
        splits[name] = shortcut_dataset(list(images), labels, shortcuts, LABELS, SHORTCUTS, ids)
    return DatasetDict(splits)


def tiny_vit(folder: Path) -> str:
    """A folder with a model of some 3,000 weights and its image processor."""
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def run(model: str, output_dir: Path, method: str, data: DatasetDict | None = None, **options: Any) -> dict[str, Any]:
    """The results of one run; ``options`` of `ULEConfig` and `MethodArguments`."""
    of_method = {name: options.pop(name) for name in list(options) if name in MethodArguments.__dataclass_fields__}
    settings = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 32,
        "learning_rate": 3e-3,
        "weight_decay": 0.0,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = ULEConfig(str(output_dir), **(settings | options))
    method_args = MethodArguments(method=method, **of_method)
    return fit(data or pictures(), "none", ModelArguments(model=model), args, method_args=method_args)
