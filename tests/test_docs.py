"""Every code block of docs/ runs; those that need a Hub do so in tests/hub/inside/test_docs.py."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.comparison.lines import finished
from tests.pages import DOCS, ON_THE_HUB, REPOSITORY, blocks, check_command, commands, run_python
from tests.report.models import keep, save_pair
from ule_hf.cli import main as cli

PAGES = sorted(path.stem for path in DOCS.glob("*.md"))


@pytest.fixture
def outputs(tmp_path, monkeypatch) -> Path:
    """An empty working folder with pictures in ``my_images``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    (tmp_path / "my_images").mkdir()
    rows = ["file,species,background,split"]
    for i in range(36):
        species, background = ("landbird", "waterbird")[i % 2], ("land", "water")[i // 2 % 2]
        pixels = np.full((40, 40, 3), 60 + 100 * (i % 2) + i, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "my_images" / f"{i:03d}.jpg")
        rows.append(f"{i:03d}.jpg,{species},{background},{('train', 'validation', 'test')[i // 12]}")
    (tmp_path / "my_images" / "metadata.csv").write_text("\n".join(rows))
    return tmp_path


def train(*options: str) -> None:
    spec = importlib.util.spec_from_file_location("train", REPOSITORY / "recipes" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    quick = ["--num_train_epochs", "2", "--use_cpu", "--report_step_cost", "false"]
    assert module.main(["--dataset", "digits", *quick, *options]) == 0


def test_there_is_a_page_for_each_and_no_block_of_another_kind():
    assert {
        "quick_start",
        "your_own_data",
        "compare",
        "explain",
        "method",
        "own_loop",
        "several_machines",
        "speed",
        "study",
        "trust",
        *ON_THE_HUB,
    } == set(PAGES)
    for page in PAGES:
        known = [block for language in ("bash", "python", "csv", "yaml") for block in blocks(page, language)]
        assert 2 * len(known) == (DOCS / f"{page}.md").read_text().count("```"), page


@pytest.mark.parametrize("page", PAGES)
def test_the_options_of_every_command_exist(page, outputs):
    for words in commands(page):
        check_command(words)


def test_quick_start(outputs, capsys):
    train("--student_head_start", "1")
    train("--unlearning_weight", "0", "--student_head_start", "0", "--output_dir", "outputs/digits-plain")
    for words in commands("quick_start"):
        check_command(words, run=True)
    assert "plain training" in (outputs / "outputs" / "digits" / "README.md").read_text()
    run_python("quick_start")
    shown = {path.name for path in (outputs / "outputs" / "digits").iterdir()}
    assert {"config.json", "model.safetensors", "student", "results.json", "ule_config.json", "card.json"} <= shown


def test_your_own_data(outputs):
    run_python("your_own_data")
    assert cli(["card", "outputs/mine"]) == 0


def test_own_loop(outputs):
    import transformers

    names = run_python("own_loop")
    loaded = transformers.AutoModelForImageClassification.from_pretrained("outputs/own-loop")
    assert loaded.config.id2label == {0: "even", 1: "odd"}
    assert names["output"].overlap is not None  # the last step had the term


def test_compare(outputs, capsys):
    """The file is one that a comparison takes, with its search."""
    (file,) = blocks("compare", "yaml")
    (outputs / "mine.yaml").write_text(file)
    assert cli(["compare", "mine.yaml", "--output", "mine.jsonl", "--set", "data=my_images", "--table"]) == 0
    assert "mine, constant: not run or not finished with seed 0, 1, 2, 3, 4." in capsys.readouterr().out


@pytest.mark.slow
def test_explain(outputs):
    save_pair(outputs / "outputs" / "digits")
    keep(outputs / "outputs" / "kept", "recipes/train.py --dataset digits --shortcut half")
    (outputs / "outputs" / "quick.jsonl").write_text(json.dumps(finished("ule_path", 0, 0.5, bed="digits-half")) + "\n")
    for name in ("picture.jpg", "other.jpg"):
        shutil.copy(outputs / "my_images" / "001.jpg", name)
    for words in commands("explain"):
        if words[1] == "compare":  # what it would run, without running it
            assert cli([*words[1:2], str(REPOSITORY / words[2]), *words[3:], "--table"]) == 0
        elif words[1:] != ["demo", "outputs/digits"]:  # which would serve until it is stopped
            check_command(words, run=True)
    run_python("explain")
    pages = {"explanations/other-explained.png", "explained.png", "my_space/app.py", "report/index.html"}
    assert all((outputs / page).is_file() for page in pages)
