"""Runs as they are started, recorded, resumed and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.comparison.lines import failed, finished
from ule_hf.cli import main as cli
from ule_hf.comparison.plan import Cell
from ule_hf.comparison.run import Stopped, Trainer, append, command, in_parallel, missing, read
from ule_hf.errors import UleError

TINY = {"model": "test_resnet", "image_size": 32, "augmentation": "none", "num_train_epochs": 1, "use_cpu": True}
TINY |= {"label_column": "animal", "split_column": "part", "attribute_columns": ["where"]}


def photographs(folder: Path) -> None:
    """Twelve noisy pictures a split."""
    folder.mkdir(parents=True)
    rows = ["file_name,animal,where,part"]
    for i in range(36):
        animal, where, part = ("cat", "dog")[i % 2], ("in", "out")[i // 2 % 2], ("train", "val", "test")[i // 12]
        pixels = np.random.default_rng(i).integers(0, 99, (32, 32, 3)) + 80 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{animal},{where},{part}")
    (folder / "metadata.csv").write_text("\n".join(rows))


def plan(folder: Path) -> Path:
    file = folder / "pets.yaml"
    beds = {bed: {"dataset": "folder", "data_dir": f"${{data}}/{bed}", **TINY} for bed in ("pets", "more", "late")}
    methods = {"erm": {"method": "erm"}}
    file.write_text(yaml.safe_dump({"beds": beds, "methods": methods, "seeds": [3]}, sort_keys=False))
    return file


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_comparison_that_is_killed_goes_on_and_one_that_fails_says_so(tmp_path, capsys, monkeypatch):
    photographs(tmp_path / "data" / "pets")
    photographs(tmp_path / "data" / "more")
    (tmp_path / "data" / "late").mkdir()
    output, models = tmp_path / "results" / "pets.jsonl", tmp_path / "models"
    argv = ["compare", str(plan(tmp_path)), "--output", str(output), "--set", f"data={tmp_path / 'data'}"]
    process = subprocess.Popen([sys.executable, "-m", "ule_hf.cli", *argv])
    wait_for(lambda: output.is_file() and output.read_text().endswith("\n"), 900)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = output.read_text()
    if sys.version_info >= (3, 11):  # PYTHONSAFEPATH: a working directory with a package of our name is no matter
        (tmp_path / "elsewhere" / "ule_hf").mkdir(parents=True)
        (tmp_path / "elsewhere" / "ule_hf" / "__init__.py").write_text("raise ImportError('another package')")
        monkeypatch.chdir(tmp_path / "elsewhere")

    assert cli([*argv, "--keep_models", str(models), "--processes", "2"]) == 1  # the last bed's folder is empty
    assert output.read_text().startswith(before)
    lines = {line["bed"]: line for line in read(output)[0]}
    expected = {"pets": "finished", "more": "finished", "late": "failed"}
    assert {bed: line["status"] for bed, line in lines.items()} == expected and len(read(output)[0]) == 3
    assert lines["more"]["run"]["cpu_seconds"] > 0 and lines["more"]["run"]["versions"]["torch"]
    assert (models / "more" / "erm" / "3" / "model.safetensors").is_file() and not list(models.rglob("checkpoint-*"))
    assert not (models / "late" / "erm" / "3").exists()
    # nothing of this machine is in what gets published, and the reason is one line
    assert str(tmp_path) not in output.read_text() and "--data_dir pets" in lines["pets"]["command"]
    assert "late" in lines["late"]["error"] and "\n" not in lines["late"]["error"]
    assert f"late, erm, seed 3: failed: {lines['late']['error']}" in output.with_suffix(".md").read_text()

    capsys.readouterr()
    assert cli(argv) == 1 and "0 of 3 runs are to do" in capsys.readouterr().err
    (tmp_path / "data" / "late").rmdir()
    photographs(tmp_path / "data" / "late")
    assert cli([*argv, "--retry_failed"]) == 0
    assert cli([*argv, "--table"]) == 0
    assert "failed" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_trains_and_takes_the_rate_that_learns(tmp_path):
    file, output = tmp_path / "rates.yaml", tmp_path / "rates.jsonl"
    bed = {"dataset": "digits", "model": "test_resnet", "image_size": 32, "num_train_epochs": 1, "use_cpu": True}
    bed |= {"correlation": 0.5, "per_device_train_batch_size": 64}
    search = {"trials": 4, "rule": "average", "space": {"erm": {"learning_rate": {"choices": [1e-9, 5e-3]}}}}
    content = {"beds": {"digits": bed}, "methods": {"erm": {"method": "erm"}}, "seeds": [0], "search": search}
    file.write_text(yaml.safe_dump(content))
    assert cli(["compare", str(file), "--output", str(output)]) == 0
    (line,) = read(output)[0]
    assert line["options"]["search"]["found"] == {"learning_rate": 5e-3}
    assert "--learning_rate 0.005" in line["command"] and line["last_epoch"]["model"]["test_accuracy"] > 0.7


def test_only_the_same_options_count_as_done():
    cells = [Cell("birds", "erm", seed, {"dataset": "folder"}, {"method": "erm"}) for seed in range(4)]
    others = {"bed": {"dataset": "digits"}, "method": {"method": "erm"}, "search": {}}
    lines = [finished("erm", 0, 0.5), finished("erm", 1, 0.5) | {"options": others}, failed("erm", 2, "why")]
    lines[2]["options"] = lines[0]["options"]
    assert [cell.seed for cell in missing(cells, lines)] == [1, 3]
    assert [cell.seed for cell in missing(cells, lines, retry_failed=True)] == [1, 2, 3]


def test_a_command_can_be_typed_again_elsewhere():
    cell = Cell("birds", "erm", 0, {"data_dir": "/mnt/birds", "model_args": {"img_size": 32}}, {"method": "erm"})
    assert command(cell.options()).startswith(
        """recipes/train.py --data_dir birds --model_args '{"img_size": 32}' --method erm --evaluate_test"""
    )


def test_lines_written_at_once_are_whole(tmp_path):
    file = tmp_path / "out.jsonl"
    lines = [failed("erm", seed, "x" * 5000) for seed in range(40)]
    in_parallel([lambda line=line: append(file, line) for line in lines], 8, Trainer())
    read_back, problems = read(file)
    assert sorted(line["seed"] for line in read_back) == list(range(40)) and not problems


def test_a_line_that_is_broken_off_is_named_and_spoils_no_other(tmp_path):
    file = tmp_path / "out.jsonl"
    whole = json.dumps(failed("erm", 0, "why"))
    file.write_text(f"{whole}\n{whole[:50]}")
    append(file, failed("erm", 1, "why"))
    lines, problems = read(file)
    assert [line["seed"] for line in lines] == [0, 1]
    assert problems == ["line 2 of out.jsonl is broken off, and not counted"]


def test_another_file_is_not_written_into(tmp_path, capsys):
    file = tmp_path / "digits.jsonl"
    file.write_text('{"key": {"seed": 0}}\n')
    assert cli(["compare", str(plan(tmp_path)), "--output", str(file), "--set", f"data={tmp_path}"]) == 2
    assert "digits.jsonl line 1 is no run of a comparison" in capsys.readouterr().err
    assert file.read_text() == '{"key": {"seed": 0}}\n'


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output", "out.csv"], "must end in .jsonl"),
        (["--output", "out.jsonl", "--processes", "0"], "--processes 0"),
        (["--output", "out.jsonl", "--set", "data=/no/such/folder"], "no such file or folder"),
        (["--output", "out.jsonl", "--set", "data"], "NAME=VALUE"),
        (["--output", "out.jsonl", "--beds", "pet"], "there is no bed 'pet'"),
    ],
)
def test_bad_command_lines_are_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert cli(["compare", str(plan(tmp_path)), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pets.yaml"]


def test_stopping_ends_what_runs_and_records_nothing(tmp_path):
    trainer, ended = Trainer(), []

    def run() -> None:
        try:
            trainer.train({"dataset": "digits", "num_train_epochs": 10**6}, tmp_path / "out")
        except Stopped:
            ended.append("stopped")

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: trainer._running, 30)
    [process] = trainer._running
    trainer.stop()
    thread.join(30)
    assert ended == ["stopped"] and process.returncode == -signal.SIGTERM
    with pytest.raises(Stopped):
        trainer.train({}, tmp_path / "out")


def test_the_reason_of_a_run_that_broke(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(Exception, match=r"^ended by signal 9 \(out of memory\?\)$"):
        Trainer().train({}, tmp_path / "out")


def test_a_results_folder_with_nothing_in_it(tmp_path, capsys):
    assert cli(["compare", str(plan(tmp_path)), "--output", str(tmp_path / "none.jsonl"), "--table"]) == 0
    assert "pets, erm: not run or not finished with seed 3" in capsys.readouterr().out
    with pytest.raises(UleError, match="is no run"):
        (tmp_path / "list.jsonl").write_text("[]\n")
        read(tmp_path / "list.jsonl")
