"""Starts the loopback Hub and points every client at it; the environment is read when the clients are imported."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.hub.server import OWNER, LoopbackHub

assert "huggingface_hub" not in sys.modules, "the clients have read their environment already"
HUB = LoopbackHub()
HOME = tempfile.TemporaryDirectory()
os.environ |= {
    "HF_ENDPOINT": HUB.start(),
    "HF_HUB_DISABLE_XET": "1",  # the loopback speaks LFS
    "HF_TOKEN": OWNER,
    "HF_HOME": HOME.name,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "0",
}

from tests.data.conftest import small_spawrious  # noqa: E402, F401  fixtures of small copies, for pushes of data
from tests.data.test_urbancars import small as small_urbancars  # noqa: E402, F401


@pytest.fixture
def hub(monkeypatch):
    """An empty Hub, seen by its owner."""
    HUB.repositories.clear()
    HUB.blobs.clear()
    HUB.requests.clear()
    HUB.fault = lambda method, path: None
    monkeypatch.setenv("HF_TOKEN", OWNER)
    return HUB


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Output folder of the recipe: a timm teacher, its student, card and results."""
    from ule_hf.arguments import parse
    from ule_hf.experiment import run

    folder = tmp_path_factory.mktemp("outputs") / "digits"
    options = ["--num_train_epochs", "2", "--student_head_start", "1", "--use_cpu", "--report_step_cost", "false"]
    command = ["--output_dir", str(folder), *options, "--disable_tqdm", "true", "--license", "apache-2.0"]
    repository = Path(__file__).parents[3]
    run(*parse(command, recipes=repository / "recipes"), command="recipes/train.py --dataset digits")
    return folder
