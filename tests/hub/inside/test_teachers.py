"""A teacher is pushed and read again by transformers, pipeline, timm and load_teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from tests.hub.server import OWNER, READER
from ule_hf import UleError, load_backbone, load_student, load_teacher, save_backbone
from ule_hf.card import CardFacts, write_card
from ule_hf.cli import main as cli

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A copy of the trained output folder."""
    return Path(shutil.copytree(trained, tmp_path / "digits"))


def logits_of(classifier, pixel_values) -> torch.Tensor:
    with torch.no_grad():
        output = classifier.eval()(pixel_values)
    return getattr(output, "logits", output)


def test_every_reader_gives_the_logits_of_the_folder(hub, folder):
    assert cli(["push", str(folder), "digits-teacher"]) == 0
    expected = load_teacher(folder)
    pixels = expected.transform({"image": [PICTURE]})["pixel_values"]
    logits = logits_of(expected.classifier, pixels)

    teacher = load_teacher("me/digits-teacher")
    assert torch.equal(logits_of(teacher.classifier, teacher.transform({"image": [PICTURE]})["pixel_values"]), logits)
    assert teacher.results == json.loads((folder / "results.json").read_text())

    auto = AutoModelForImageClassification.from_pretrained("me/digits-teacher")
    processed = AutoImageProcessor.from_pretrained("me/digits-teacher")(PICTURE, return_tensors="pt")["pixel_values"]
    assert torch.equal(logits_of(auto, processed), logits)

    with_timm = timm.create_model("hf-hub:me/digits-teacher", pretrained=True)
    transform = create_transform(**resolve_model_data_config(with_timm), is_training=False)
    torch.testing.assert_close(logits_of(with_timm, transform(PICTURE)[None]), logits, rtol=1e-4, atol=1e-4)

    scores = {
        answer["label"]: answer["score"] for answer in pipeline("image-classification", "me/digits-teacher")(PICTURE)
    }
    assert scores == pytest.approx(dict(zip(("even", "odd"), logits.softmax(1)[0].tolist(), strict=True)), abs=1e-5)

    ours, _ = load_backbone("me/digits-teacher", label_names=["even", "odd"])
    assert torch.equal(logits_of(ours, pixels), logits)


def test_a_transformers_teacher(hub, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ViTConfig(
        **sizes, image_size=32, patch_size=16, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}
    )
    model = ViTForImageClassification(config).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    save_backbone(model, processor, tmp_path)
    (tmp_path / "ule_config.json").write_text(json.dumps(ule_config()))
    write_card(tmp_path, CardFacts(license="mit"))
    assert cli(["push", str(tmp_path), "me/vit"]) == 0
    assert "preprocessor_config.json" in hub.files("me/vit")
    teacher = load_teacher("me/vit")
    pixels = teacher.transform({"image": [PICTURE]})["pixel_values"]
    assert torch.equal(logits_of(teacher.classifier, pixels), logits_of(model, pixels))
    assert teacher.results is None and teacher.classifier.config.id2label == {0: "cat", 1: "dog"}
    answers = pipeline("image-classification", "me/vit")(PICTURE)
    assert {a["label"] for a in answers} == {"cat", "dog"}


def ule_config() -> dict:
    from ule_hf.config import ULEConfig

    return ULEConfig(output_dir="vit", use_cpu=True).to_sanitized_dict()


def test_a_repository_is_explained_as_its_folder_is(hub, folder, tmp_path, capsys):
    assert cli(["push", str(folder), "me/digits", "--with_student"]) == 0
    PICTURE.save(tmp_path / "one.png")
    captions = []
    for model in (str(folder), "me/digits"):
        capsys.readouterr()
        output = tmp_path / model.replace("/", "-")
        assert cli(["explain", model, str(tmp_path / "one.png"), "--output", str(output)]) == 0
        captions.append(capsys.readouterr().out.replace(str(output), ""))
    assert captions[0] == captions[1] and "student" in captions[0]
    of_folder, of_repository = (path.read_bytes() for path in sorted(tmp_path.glob("*/one-explained.png")))
    assert of_folder == of_repository
    assert cli(["push", str(folder), "me/digits"]) == 0  # takes the student away
    assert cli(["explain", "me/digits", str(tmp_path / "one.png"), "--output", str(tmp_path / "alone")]) == 0
    assert (tmp_path / "alone" / "one-explained.png").read_bytes() != of_folder


def test_the_student_goes_along_only_when_asked(hub, folder):
    assert cli(["push", str(folder), "me/digits"]) == 0
    assert not [name for name in hub.files("me/digits") if "student" in name]
    assert cli(["push", str(folder), "me/digits", "--with_student"]) == 0
    student = load_student("me/digits")
    weights = load_file(folder / "student" / "model.safetensors")
    assert all(torch.equal(student.classifier.timm_model.state_dict()[name], weights[name]) for name in weights)
    assert cli(["push", str(folder), "me/digits"]) == 0  # and away with it again
    assert not [name for name in hub.files("me/digits") if "student" in name]


def test_only_the_teacher_s_files_leave_the_machine(hub, folder):
    (folder / "notes.txt").write_text("mine")
    assert cli(["push", str(folder), "me/digits"]) == 0
    assert hub.files("me/digits").keys() == {
        *("README.md", "card.json", "config.json", "model.safetensors", "results.json", "ule_config.json")
    }
    assert hub.repositories["model", "me/digits"].messages == ["initial commit", "Upload teacher"]


def test_results_of_an_earlier_teacher_do_not_stay(hub, folder):
    assert cli(["push", str(folder), "me/digits"]) == 0
    (folder / "results.json").unlink()
    assert cli(["push", str(folder), "me/digits"]) == 0
    assert load_teacher("me/digits").results is None
    assert "Worst-group accuracy" not in ModelCard.load("me/digits").content


def test_the_card_names_the_repository_unless_it_was_written_by_hand(hub, folder):
    assert cli(["push", str(folder), "me/digits"]) == 0
    card = ModelCard.load("me/digits")
    assert 'pipeline("image-classification", "me/digits")' in card.text
    card.validate()
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-classification"
    results = json.loads((folder / "results.json").read_text())["teacher"]
    assert {r.metric_name: r.metric_value for r in card.data.eval_results} == pytest.approx(
        {"Accuracy": results["test_accuracy"], "Worst-group accuracy": results["test_worst_group_accuracy"]}, abs=1e-4
    )
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    assert cli(["push", str(folder), "me/digits"]) == 0
    assert "My own words." in ModelCard.load("me/digits").text


def test_a_branch_and_a_commit(hub, folder):
    assert cli(["push", str(folder), "me/digits", "--revision", "seed/1"]) == 0
    assert hub.files("me/digits") == {}  # main
    commit = hub.repositories["model", "me/digits"].branches["seed/1"]
    for revision in ("seed/1", commit):
        assert load_teacher("me/digits", revision=revision).results is not None


def test_a_private_teacher_is_seen_by_its_owner_only(hub, folder, monkeypatch, capsys):
    assert cli(["push", str(folder), "me/secret", "--private"]) == 0
    assert hub.repositories["model", "me/secret"].private
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(OSError, match="me/secret"):
        AutoModelForImageClassification.from_pretrained("me/secret")
    with pytest.raises(UleError, match=r"me/secret.*private one that your token cannot see"):
        load_teacher("me/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(UleError, match="does not accept your token"):
        load_teacher("me/secret")
    monkeypatch.setenv("HF_TOKEN", OWNER)
    assert load_teacher("me/secret").results is not None


def test_a_push_that_was_cut_off_goes_on_where_it_stopped(hub, folder, capsys):
    hub.fault = lambda method, path: (503, {"error": "no commits today"}) if "/commit/" in path else None
    assert cli(["push", str(folder), "me/digits"]) == 2
    assert "cannot serve this now" in capsys.readouterr().err and hub.files("me/digits") == {}
    hub.fault = lambda method, path: None
    hub.requests.clear()
    assert cli(["push", str(folder), "me/digits"]) == 0
    assert not [path for method, path in hub.requests if method == "PUT"]  # the weights were there already
    assert load_teacher("me/digits").results is not None


def test_pictures_of_saliency_are_in_the_card(hub, folder):
    (folder / "saliency").mkdir()
    PICTURE.save(folder / "saliency" / "student and teacher.png")
    write_card(folder)
    assert cli(["push", str(folder), "me/digits"]) == 0
    assert "saliency/student and teacher.png" in hub.files("me/digits")
    assert "(<saliency/student and teacher.png>)" in ModelCard.load("me/digits").text


def test_the_clients_speak_to_the_loopback_only(hub):
    assert HfApi().endpoint == hub.address
