"""Two processes on the CPU (gloo): the same weights on both, and the same as one process with the doubled batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import program

REPOSITORY = Path(__file__).parents[2]


pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
DIGITS = [
    "recipes/train.py",
    "--dataset",
    "digits",
    "--use_cpu",
    "--num_train_epochs",
    "1",
    "--student_head_start",
    "0",
]
DIGITS += ["--report_step_cost", "false"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(*program: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += ["-m", "tests.distributed.program", *program]
    return subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)


def start(*command: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, env=ENVIRONMENT, **pipes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """What one process left, and what two left."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    program.run(one, processes=1)
    done = launch(str(two), "2")
    assert done.returncode == 0, done.stderr[-3000:]
    return one, two


# a head start leaves the teacher's parameters without a gradient for an epoch, which DDP has to be told;
# `path` with given partners and points, each within its half
@pytest.mark.parametrize("what", ["head-start-0", "head-start-1", "path", "accumulation"])
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


def test_batch_norm_uneven_batches_and_a_skipped_step(folders):
    """Both processes end with the first one's running statistics, and measure with them."""
    ranks = [load_file(folders[1] / f"batch-norm-rank{rank}.safetensors") for rank in (0, 1)]
    for name, value in ranks[0].items():
        assert torch.equal(value, ranks[1][name]) and value.isfinite().all(), name
    (loss, skipped), other = (json.loads((folders[1] / f"batch-norm-rank{rank}.json").read_text()) for rank in (0, 1))
    assert [loss, skipped] == other and skipped == 3  # two epochs, of which the first fills its last batch with it


def test_processes_with_models_of_their_own_are_told(folders):
    for rank in (0, 1):
        text = (folders[1] / f"differ-rank{rank}.txt").read_text()
        assert text.startswith("teacher.timm_model.head.fc.bias (1 of ")


def test_machines_without_common_storage_are_refused(folders):
    for rank in (0, 1):
        assert (
            "process 1 does not see the output_dir of process 0" in (folders[1] / f"apart-rank{rank}.txt").read_text()
        )


@pytest.mark.parametrize(("fault", "message"), [("killed", "SIGKILL"), ("broken", "picture-5")])
def test_all_stop_when_one_dies(tmp_path, fault, message):
    done = launch(str(tmp_path), "2", fault)
    assert done.returncode != 0 and message in done.stderr
    assert time.time() - float((tmp_path / "time").read_text()) < 60


def test_two_launches_into_one_folder_do_not_both_train(tmp_path):
    runs = [start(*DIGITS, "--output_dir", str(tmp_path), "--overwrite_output_dir") for _ in range(2)]
    (_, one), (_, other) = (run.communicate(timeout=500) for run in runs)
    assert sorted(run.returncode for run in runs) == [0, 2], one + other
    assert f"error: another run is writing to {tmp_path}" in one + other
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize("storage", ["common", "apart"])
def test_two_processes_as_two_machines(tmp_path, storage):
    """docs/several_machines.md on the loopback address, with one output folder and with one for each."""
    folders = [tmp_path / "0", tmp_path / ("0" if storage == "common" else "1")]
    options = [] if storage == "common" else ["--save_on_each_node", "true"]
    config = ["--config_file", "recipes/accelerate_configs/two_nodes.yaml", "--num_processes", "2"]
    address = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    launcher = ["-m", "accelerate.commands.launch", *config, *address, "--machine_rank"]
    programs = [[*DIGITS, *options, "--output_dir", str(folder)] for folder in folders]
    runs = [start(*launcher, str(rank), *program) for rank, program in enumerate(programs)]
    outputs = [run.communicate(timeout=500) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    for folder in folders:
        assert json.loads((folder / "results.json").read_text())["run"]["processes"] == 2
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert ["test accuracy" in out for out, _ in outputs] == [True, False]
