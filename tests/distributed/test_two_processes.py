"""Two processes on the CPU (gloo): the same weights on both, and the same as one process with the doubled batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import program

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """What one process left, and what two left."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    program.run(one, processes=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += ["-m", "tests.distributed.program", str(two), "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return one, two


# a head start leaves the teacher's parameters without a gradient for an epoch, which DDP has to be told;
# `path` with given partners and points, each within its half
@pytest.mark.parametrize("what", ["head-start-0", "head-start-1", "path"])
def test_two_processes_equal_one_with_the_doubled_batch(folders, what):
    one, two = folders
    expected = load_file(one / f"{what}-rank0.safetensors")
    ranks = [load_file(two / f"{what}-rank{rank}.safetensors") for rank in (0, 1)]
    for name, value in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["head-start-0", "head-start-1"])
def test_logged_and_evaluated_figures_are_those_of_one_process(folders, what):
    one, two = (json.loads((folder / f"{what}.json").read_text()) for folder in folders)
    assert one == pytest.approx(two, rel=1e-3)
