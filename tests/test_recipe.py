"""recipes/train.py as a user runs it, in this process where nothing is gained by another."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoModelForImageClassification, pipeline

from ule_hf.arguments import parse
from ule_hf.cli import main as cli
from ule_hf.data import load
from ule_hf.errors import UleError
from ule_hf.provenance import data_fingerprint

REPOSITORY = Path(__file__).parents[1]
QUICK = ["--num_train_epochs", "2", "--student_head_start", "1", "--use_cpu", "--report_step_cost", "false"]


def recipe():
    spec = importlib.util.spec_from_file_location("train", REPOSITORY / "recipes" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


train = recipe()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "out"
    assert train(["--dataset", "digits", "--output_dir", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Twelve pictures a class with a metadata file, as a user would bring them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photographs"
    folder.mkdir()
    rows = ["file_name,animal,where,part"]
    for i in range(36):
        animal, where = ("cat", "dog")[i % 2], ("in", "out")[i // 2 % 2]
        name = f"{i} {animal}.png"
        pixels = rng.integers(0, 99, (40, 48, 3)) + 80 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        rows.append(f"{name},{animal},{where},{('train', 'val', 'test')[i // 12]}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    return folder


FOLDER = ["--dataset", "folder", "--label_column", "animal", "--split_column", "part", "--attribute_columns", "where"]
FOLDER += ["--model", "test_resnet", "--image_size", "32", "--use_cpu", "--num_train_epochs", "1"]


def test_results_name_both_models_and_every_group(trained):
    results = json.loads((trained / "results.json").read_text())
    for model in ("teacher", "student"):
        figures = results[model]
        assert figures.keys() == {
            *("test_accuracy", "test_worst_group_accuracy", "test_worst_class_accuracy"),
            *("test_train_weighted_accuracy", "groups"),
        }
        accuracies = {name: group["accuracy"] for name, group in figures["groups"].items()}
        assert len(accuracies) == 4 and {group["size"] for group in figures["groups"].values()} == {170}
        assert figures["test_worst_group_accuracy"] == min(accuracies.values())
    run = results["run"]
    assert run["variant"]["attribution"] == "path" and run["seed"] == 42
    assert run["command"].startswith("recipes/train.py --dataset digits") and run["versions"]["torch"]
    assert (
        run["data_fingerprint"] == data_fingerprint(load("digits", correlation=1.0, seed=42)) and "git_revision" in run
    )


def test_three_readers_give_the_same_logits(trained):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))
    classify = pipeline("image-classification", str(trained))
    pixels = classify.image_processor(picture, return_tensors="pt")["pixel_values"]
    auto = AutoModelForImageClassification.from_pretrained(trained).eval()
    with_timm = timm.create_model(f"local-dir:{trained}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(with_timm), is_training=False)
    with torch.no_grad():
        expected = auto(pixels).logits
        torch.testing.assert_close(with_timm(transform(picture)[None]), expected, rtol=1e-4, atol=1e-4)
    scores = {answer["label"]: answer["score"] for answer in classify(picture)}
    assert scores == pytest.approx(dict(zip(("even", "odd"), expected.softmax(1)[0].tolist(), strict=True)), abs=1e-4)


def test_an_output_folder_that_holds_a_model_is_refused(trained, capsys):
    before = sorted(path.stat().st_mtime_ns for path in trained.rglob("*"))
    assert train(["--dataset", "digits", "--output_dir", str(trained), *QUICK]) == 2
    assert "already holds a model" in one_line(capsys)
    assert sorted(path.stat().st_mtime_ns for path in trained.rglob("*")) == before


def test_resuming_a_finished_run_and_overwriting_it(trained, capsys):
    arguments = ["--dataset", "digits", "--output_dir", str(trained), *QUICK]
    results = json.loads((trained / "results.json").read_text())
    assert train([*arguments, "--resume_from_checkpoint", "latest"]) == 0
    assert json.loads((trained / "results.json").read_text())["teacher"] == results["teacher"]
    assert train([*arguments, "--overwrite_output_dir", "--seed", "1"]) == 0
    assert json.loads((trained / "results.json").read_text())["run"]["seed"] == 1


def test_resuming_where_there_is_nothing(tmp_path, capsys):
    arguments = ["--output_dir", str(tmp_path / "none"), "--resume_from_checkpoint", "latest", *QUICK]
    assert train(["--dataset", "digits", *arguments]) == 2
    assert "no checkpoint" in one_line(capsys)


def test_your_own_folder(photographs, tmp_path, capsys):
    out = tmp_path / "out"
    assert train([*FOLDER, "--data_dir", str(photographs), "--output_dir", str(out)]) == 0
    assert "cat, where=out" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert {name: group["size"] for name, group in results["teacher"]["groups"].items()} == {
        f"{animal}, where={where}": 3 for animal in ("cat", "dog") for where in ("in", "out")
    }


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0]
    return errors[0]


def spoil_an_image(folder: Path) -> None:
    (folder / "3 dog.png").write_bytes((folder / "3 dog.png").read_bytes()[:200])


def lose_an_image(folder: Path) -> None:
    (folder / "3 dog.png").unlink()


def empty_a_split(folder: Path) -> None:
    metadata = folder / "metadata.csv"
    metadata.write_text("\n".join(line for line in metadata.read_text().splitlines() if not line.endswith(",test")))


def empty_a_class(folder: Path) -> None:
    metadata = folder / "metadata.csv"
    kept = [line for line in metadata.read_text().splitlines() if "cat" not in line or not line.endswith(",train")]
    metadata.write_text("\n".join(kept))


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (spoil_an_image, [], "3 dog.png"),
        (lose_an_image, [], "3 dog.png"),
        (empty_a_split, [], "test"),
        (empty_a_class, [], "cat"),
        (None, ["--label_column", "anmal"], "anmal"),
        (None, ["--attribute_columns", "colour"], "colour"),
        (None, ["--model", "resnet51"], "resnet50"),
        (None, ["--model", "test_vit", "--model_args", "{img_size}"], "--model_args"),
        (None, ["--checkpoint_path", "weights.pth"], "safetensors"),
        (None, ["--grid", "99x99", "--preset", "path", "--student_head_start", "0"], "99x99"),
        (None, ["--learning_rate", "x"], "invalid float value"),
        (None, ["--presets", "path"], "did you mean --preset"),
        (None, ["--data_dir", "nowhere"], "nowhere"),
        (None, ["--dataset", "waterbrids"], "waterbrids"),
        (None, ["--fp16"], "fp16"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(photographs, tmp_path, capsys, spoil, options, message):
    if spoil is not None:
        spoil(photographs)
    out = tmp_path / "out"
    assert train([*FOLDER, "--data_dir", str(photographs), "--output_dir", str(out), *options]) == 2
    assert message in one_line(capsys)
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_skipping_bad_images(photographs, tmp_path):
    spoil_an_image(photographs)
    arguments = [*FOLDER, "--data_dir", str(photographs), "--output_dir", str(tmp_path / "out")]
    assert train([*arguments, "--skip_bad_images"]) == 0


def test_the_command_line_overrides_the_yaml_file(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("learning_rate: 1e-4\nnum_train_epochs: 7\npreset: path\nattribute_columns: [a, b]\nbf16: true\n")
    data_args, _, args, _ = parse(["--config", str(config), "--num_train_epochs", "5", "--use_cpu"])
    assert (args.learning_rate, args.num_train_epochs, args.preset, args.bf16) == (1e-4, 5, "path", True)
    assert data_args.attribute_columns == ["a", "b"]
    config.write_text("learning_rat: 1e-4\n")
    with pytest.raises(UleError, match=r"learning_rat does not exist.*learning_rate"):
        parse(["--config", str(config)])
    with pytest.raises(UleError, match=r"nowhere.yaml cannot be read"):
        parse(["--config", str(tmp_path / "nowhere.yaml")])


def test_the_console_command(capsys):
    assert cli(["--help"]) == 0
    assert cli(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err
    # the recipe that is installed with the package
    assert cli(["train", "--dataset", "nowhere"]) == 2
    assert "dataset 'nowhere' is unknown" in one_line(capsys)


@pytest.mark.slow
def test_the_readme_s_command_with_two_processes(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["recipes/train.py", "--dataset", "digits", "--output_dir", str(tmp_path), *QUICK]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "results.json").read_text())["run"]["processes"] == 2
    assert done.stdout.count("test accuracy") == 1
