"""Runs ``tests/hub/inside``: the real clients against a loopback Hub. To run a part of it:

ULE_HF_LOOPBACK_HUB=1 pytest tests/hub/inside -k streaming
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run_inside(marker: str) -> None:
    command = [sys.executable, "-m", "pytest", "tests/hub/inside", "-q", "-m", marker, "-p", "no:cacheprovider"]
    environment = {**os.environ, "ULE_HF_LOOPBACK_HUB": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


def test_the_hub():
    run_inside("not slow")


@pytest.mark.slow
def test_the_hub_with_trainings():
    run_inside("slow")
