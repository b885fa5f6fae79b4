"""What is left of a run that was killed, whose disk was full, or that was started twice."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from benchmarks.kill_trials import run_trials
from tests.test_trainer import Pictures, assert_same, make_trainer, train_log, weights
from ule_hf.checkpoints import LOCK_FILE, NEEDED_FILES, PARTIAL, last_checkpoint, written_whole
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError


def make_checkpoint(folder: Path, *without: str) -> Path:
    folder.mkdir(parents=True)
    for name in (*NEEDED_FILES, "rng_state.pth"):
        if name not in without:
            (folder / name).write_text("{}")
    return folder


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(tmp_path):
    """Sixty trials: `python -m benchmarks.kill_trials`."""
    counts = run_trials(4, seed=1, base=tmp_path)
    assert counts["kills_while_saving"] > 0 and counts["different"] == 0


@pytest.mark.parametrize("missing", [*NEEDED_FILES, "rng_state.pth"])
def test_half_a_checkpoint_is_none(tmp_path, missing, caplog):
    make_checkpoint(tmp_path / "checkpoint-8")
    half = make_checkpoint(tmp_path / "checkpoint-10", missing)
    make_checkpoint(tmp_path / f"{PARTIAL}checkpoint-12")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    assert f"{missing} is missing" in caplog.text
    with pytest.raises(UleError, match=rf"checkpoint-10 is no whole checkpoint.*{missing} is missing"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(half))


def test_going_on_with_other_options_is_said(tmp_path, caplog):
    make_trainer(tmp_path, num_train_epochs=1).train()
    again = {"learning_rate": 0.5, "unlearning_weight": 0.25, "num_train_epochs": 2}
    make_trainer(tmp_path, logging_steps=7, **again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    (said,) = [record.getMessage() for record in caplog.records if "other options" in record.getMessage()]
    assert "learning_rate 0.5 (was " in said and "unlearning_weight 0.25 (was " in said and "logging" not in said
    caplog.clear()
    make_trainer(tmp_path, **again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert "other options" not in caplog.text


def test_a_save_that_is_interrupted_leaves_no_checkpoint(tmp_path):
    """An exception where the last file is written; the next run removes what is left."""
    trainer = make_trainer(tmp_path, num_train_epochs=1)

    def interrupt(folder: Path) -> None:
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {f"{PARTIAL}checkpoint-4"}
        raise KeyboardInterrupt

    trainer.state.save_to_json = interrupt
    trainer._init_training_state = lambda *args: (0, 0)
    trainer.state.compute_steps(trainer.args, 4)
    trainer.state.init_training_references(trainer, 4, 1, None)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert last_checkpoint(tmp_path) is None
    make_trainer(tmp_path, num_train_epochs=1, save_strategy="no", load_best_model_at_end=False).train()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


@pytest.mark.parametrize(
    ("limit", "best", "there", "left"),
    [
        (1, None, (4, 8, 12), {12}),
        (1, 4, (4, 8, 12), {4, 12}),
        (2, 8, (4, 8, 12), {8, 12}),
        (2, None, (4, 8, 12, 16, 20), {8, 12}),  # 16 and 20 are of the run before this one, which resumed from 8
        (3, 4, (4, 8, 12, 16), {4, 8, 12}),
        (None, None, (4, 8, 12), {4, 8, 12}),
    ],
)
def test_the_newest_and_the_best_are_never_rotated_out(tmp_path, limit, best, there, left):
    trainer = make_trainer(tmp_path, save_total_limit=limit)
    for step in there:
        make_checkpoint(tmp_path / f"checkpoint-{step}")
    trainer.state.best_model_checkpoint = best and str(tmp_path / f"checkpoint-{best}")
    trainer._rotate(tmp_path / "checkpoint-12")
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in left}


def test_a_moved_run_remembers_its_best_epoch(tmp_path):
    first = make_trainer(tmp_path / "there", num_train_epochs=1, learning_rate=0.0)
    first.train()
    shutil.copytree(tmp_path / "there", tmp_path / "here")
    shutil.rmtree(tmp_path / "there")
    resumed = make_trainer(tmp_path / "here", num_train_epochs=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "here" / "checkpoint-4"))
    assert resumed.state.best_metric == first.state.best_metric
    assert resumed.state.best_model_checkpoint == str(tmp_path / "here" / "checkpoint-4")


class FailFrom(TrainerCallback):
    """Makes saving impossible from a step on."""

    def __init__(self, step: int, spoil) -> None:
        self.step = step
        self.spoil = spoil

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.spoil()


@pytest.fixture
def disk(tmp_path):
    """An own file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", folder]).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / "other people's").write_bytes(bytes(12_000_000))


def keeps_the_first_checkpoint(folder: Path, spoil, mend, caplog) -> None:
    trainer = make_trainer(folder, num_train_epochs=3, callbacks=[FailFrom(5, spoil)])
    try:
        trainer.train()
        assert trainer.failed_saves == 2 and train_log(trainer)[-1]["failed_saves"] == 1  # the second came after it
        assert "the checkpoint of step 8 could not be saved" in caplog.text
        assert "the last good checkpoint is" in caplog.text
        assert trainer.state.global_step == 12
        assert last_checkpoint(folder) == trainer.state.best_model_checkpoint == str(folder / "checkpoint-4")
        with pytest.raises(UleError, match=r"could not be saved.*make room and go on.*checkpoint-4"):
            trainer.save_model()
        assert not (folder / "model.safetensors").exists()
    finally:
        mend()
    best = load_file(folder / "checkpoint-4" / "model.safetensors")
    assert_same(best, {n: v.contiguous() for n, v in trainer.model.teacher.timm_model.state_dict().items()})
    trainer.save_model()
    assert_same(best, load_file(folder / "model.safetensors"))
    assert not list(folder.glob(f"{PARTIAL}*"))


def test_a_full_disk_costs_checkpoints_and_not_the_run(disk, caplog):
    keeps_the_first_checkpoint(disk, lambda: fill(disk), (disk / "other people's").unlink, caplog)


def test_a_folder_that_becomes_read_only_costs_checkpoints_and_not_the_run(tmp_path, caplog):
    """Root may write what is only marked as read-only, but not what is immutable."""

    def immutable(sign: str) -> int:
        return subprocess.run(["chattr", f"{sign}i", tmp_path]).returncode

    if shutil.which("chattr") is None or immutable("+") != 0:
        pytest.skip("no folder can be made immutable here")
    immutable("-")
    keeps_the_first_checkpoint(tmp_path, lambda: immutable("+"), lambda: immutable("-"), caplog)


def test_files_that_may_not_grow_cost_checkpoints_and_not_the_run(tmp_path, caplog):
    """As a full disk, for those who may not mount one: what is written breaks off in the middle of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    keeps_the_first_checkpoint(tmp_path, lambda: limit(50_000), lambda: limit(before[0]), caplog)


def test_a_folder_that_cannot_be_written_is_refused_before_training(disk):
    trainer = make_trainer(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = weights(trainer)
    with pytest.raises(UleError, match=r"cannot be written \(Read-only file system\)"):
        trainer.train()
    assert_same(before, weights(trainer))


def test_what_the_folder_held_stays_when_the_new_cannot_be_written(tmp_path):
    for name in ("model.safetensors", "results.json"):
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError, match="full"), written_whole(tmp_path, vouching="results.json") as partial:
        (partial / "model.safetensors").write_text("new")
        raise OSError("full")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.safetensors": "old",
        "results.json": "old",
    }
    with written_whole(tmp_path, vouching="results.json") as partial:
        (partial / "model.safetensors").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model.safetensors": "new"}


HOLD = """
import filelock, sys
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / LOCK_FILE)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    trainer = make_trainer(tmp_path, num_train_epochs=1)
    for _ in range(2):
        with pytest.raises(UleError, match=r"another run is writing to.*accelerate launch --multi_gpu"):
            trainer.train()
    other.kill()
    other.wait()
    trainer.train()  # a killed run holds nothing


def test_a_folder_that_was_removed_is_written_again_while_the_first_trainer_lives(tmp_path):
    first, again = (make_trainer(tmp_path / "out", num_train_epochs=1) for _ in range(2))
    first.train()
    shutil.rmtree(tmp_path / "out")  # as in a notebook, before its cell is run once more
    again.train()
    assert (tmp_path / "out" / LOCK_FILE).is_file() and last_checkpoint(tmp_path / "out")


def test_processes_that_do_not_know_of_one_another_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UleError, match="2 were started and none knows of the others"):
        ULEConfig(str(tmp_path), use_cpu=True)


def test_counts_come_back(tmp_path):
    options = {"model": "test_convnext", "preset": "path", "student_head_start": 0}
    options |= {"per_device_train_batch_size": 1, "train": Pictures(4)}  # never two classes in a batch
    whole = make_trainer(tmp_path, **options)
    whole.train()
    first, second = (line["batches_of_one_class"] for line in train_log(whole))
    assert (first, second) == (4, 8)
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert train_log(resumed)[-1]["batches_of_one_class"] == 8
    assert json.loads((tmp_path / "checkpoint-8" / "counts.json").read_text())["batches_of_one_class"] == 8
