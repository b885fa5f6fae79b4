"""Classifiers that are known to look at one region, and folders that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ule_hf.backbones import load_backbone, save_backbone

LABELS = ["cat", "dog"]


class Looker(nn.Module):
    """Says 1 where the mean of ``region`` (of the last two dimensions) is above ``threshold``; sees nothing else."""

    def __init__(self, region: tuple[slice, slice], threshold: float = 0.0, slope: float = 4.0) -> None:
        super().__init__()
        self.region, self.threshold, self.slope = region, threshold, slope

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        seen = pixel_values[(..., *self.region)].flatten(1).mean(dim=1) - self.threshold
        return SimpleNamespace(logits=torch.stack([-self.slope * seen, self.slope * seen], dim=1))


def save_model(folder: Path, labels: list[str] = LABELS, seed: int = 0) -> Path:
    """A tiny timm classifier of 32 x 32 pixels."""
    save_backbone(*load_backbone("test_resnet", label_names=labels, image_size=32, seed=seed), folder)
    return folder


def save_pair(folder: Path) -> Path:
    """A teacher with its student beside it, as a training leaves them."""
    save_model(folder)
    save_model(folder / "student", seed=1)
    (folder / "ule_config.json").write_text('{"attribution": "path", "grid": "4x4", "output_dir": "outputs/pets"}')
    return folder


def keep(root: Path, command: str | None, method: str = "ule_path", seed: int = 0) -> Path:
    """A pair as a comparison keeps it under ``root``, of a run of ``command`` on the bed ``digits-half``."""
    folder = save_pair(root / "digits-half" / method / str(seed))
    (folder / "results.json").write_text(json.dumps({"run": {"command": command}}))
    return folder
