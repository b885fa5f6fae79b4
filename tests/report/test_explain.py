"""`ule-hf explain` as it is typed: what the pictures say, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest
from transformers import BertConfig, pipeline

from tests.report.models import LABELS, Looker, save_model, save_pair
from ule_hf.cli import main as cli
from ule_hf.report.explain import Pair, class_names, describe, explain, load_pair


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a pair in ``teacher`` and three pictures."""
    monkeypatch.chdir(tmp_path)
    save_pair(tmp_path / "teacher")
    for i, size in enumerate([(40, 30), (32, 32), (50, 64)]):
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def test_a_picture_for_each_with_the_predictions_that_a_pipeline_gives(folder, capsys):
    assert cli(["explain", "teacher", "0.png", "1.png", "2.png", "--output", "out"]) == 0
    told = capsys.readouterr().out.splitlines()
    for model, path in (("teacher", "teacher"), ("student", "teacher/student")):
        classify = pipeline("image-classification", str(folder / path))
        for number in range(3):
            with PIL.Image.open(folder / "out" / f"{number}-explained.png") as picture:
                description = picture.text["Description"]
            best = classify(str(folder / f"{number}.png"))[0]
            assert f"The {model} says {best['label']} {100 * best['score']:.0f} %" in description
            assert description in told[number] and told[number].startswith(f"out/{number}-explained.png: ")
    assert told[-1].startswith("Dark: what the predicted class hangs on from the picture to 2 of the other pictures")
    assert "4 x 4 cells" in told[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "to its blurred copy (expected gradients), summed over 4 x 4 cells"),
        (["--grid", "dense"], "to its blurred copy (expected gradients). The"),
        (["--attribution", "gradient"], "(input gradient). The"),
        (["--attribution", "gradient", "--grid", "2x1"], "(input gradient), summed over 2 x 1 cells"),
    ],
)
def test_a_lone_picture_and_every_kind_of_map(folder, capsys, options, said):
    assert cli(["explain", "teacher", "0.png", *options]) == 0
    assert said in capsys.readouterr().out
    assert (folder / "explanations" / "0-explained.png").is_file()


def test_pictures_of_one_name_do_not_overwrite_one_another(folder):
    (folder / "more").mkdir()
    (folder / "0.png").rename(folder / "more" / "1.png")
    assert cli(["explain", "teacher", "1.png", "more/1.png", "--attribution", "gradient"]) == 0
    assert sorted(p.name for p in (folder / "explanations").iterdir()) == ["1-explained-2.png", "1-explained.png"]


def test_any_image_classifier_stands_alone_and_takes_a_student_by_name(folder, capsys):
    save_model(folder / "plain")
    assert cli(["explain", "plain", "0.png"]) == 0
    assert "student" not in capsys.readouterr().out
    assert cli(["explain", "plain", "0.png", "--student", "teacher/student"]) == 0
    assert "The student says" in capsys.readouterr().out


def test_the_map_of_each_model_is_brightest_where_it_looks(folder):
    """The student sees the upper half, the teacher the lower one, whatever the attribution."""
    transform = load_pair("teacher").transform
    upper, lower = Looker((slice(0, 16), slice(None))), Looker((slice(16, 32), slice(None)))
    for model in (upper, lower):
        model.config = type("Config", (), {"id2label": dict(enumerate(LABELS)), "num_labels": 2})
    images = [PIL.Image.open(folder / f"{i}.png").convert("RGB") for i in range(3)]
    pair = Pair(lower, transform, upper, ("path", (4, 4)))
    for attribution in ("gradient", "path"):
        for one in explain(pair, images, ["a", "b", "c"], attribution, "2x2"):
            student, teacher = one.views
            assert (student.name, teacher.name) == ("student", "teacher")
            assert student.map[0].max() == 1 and not student.map[1].any()
            assert teacher.map[1].max() == 1 and not teacher.map[0].any()


def spoil_image(folder):
    (folder / "0.png").write_bytes(b"this is no picture")


def no_classifier(folder):
    BertConfig(num_hidden_layers=1).save_pretrained(folder / "teacher")


def other_classes(folder):
    save_model(folder / "other", labels=["cat", "cow"])


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (spoil_image, ["teacher", "1.png", "0.png"], "0.png: is no picture"),
        (None, ["teacher", "9.png"], "9.png: there is no such file"),
        (no_classifier, ["teacher", "0.png"], "teacher: holds a 'bert' model, which has no image classifier"),
        (None, ["more", "0.png"], "more: "),
        (other_classes, ["teacher", "0.png", "--student", "other"], "the student tells ['cat', 'cow']"),
        (None, ["teacher", "0.png", "--student", "nowhere"], "nowhere: is no folder"),
        (None, ["teacher", "0.png", "--grid", "99x1"], "grid 99x1 does not fit"),
        (None, ["teacher", "0.png", "--grid", "fine"], "grid 'fine' is not understood"),
        (None, ["teacher", "0.png", "--output", "1.png"], "--output 1.png is a file"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, capsys, spoil, arguments, message):
    (folder / "more").mkdir()
    if spoil:
        spoil(folder)
    assert cli(["explain", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and message in lines[-1]
    assert not (folder / "explanations").exists()


def test_names_and_captions():
    assert class_names(type("M", (), {"config": BertConfig(id2label={1: "b", 0: "a"})})) == ["a", "b"]
    assert describe("grad_cam", None).startswith("Dark: where the last convolution")


def test_what_was_trained_with_is_read(folder):
    assert load_pair("teacher").trained_with == ("path", (4, 4))
    (folder / "teacher" / "ule_config.json").write_text(json.dumps({"attribution": "gradient", "grid": "dense"}))
    assert load_pair("teacher").trained_with == ("gradient", None)
