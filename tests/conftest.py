"""Small smooth networks and batches that several tests share."""

from __future__ import annotations

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def smooth_network(classes: int = 3, channels: int = 2, size: int = 4) -> nn.Module:
    """A float64 network whose derivatives of every order exist: finite differences then tell the truth."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * size * size, classes)
    ).double()
