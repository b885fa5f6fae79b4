"""What cannot be pushed or loaded: one line each, and nothing on the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from tests.hub.server import READER
from ule_hf import UleError, load_student, load_teacher, push_teacher
from ule_hf.cli import main as cli


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "digits"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def no_configuration(folder: Path) -> None:
    (folder / "ule_config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def half_the_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def one_label_name_too_many(folder: Path) -> None:
    change(folder / "config.json", label_names=["even", "odd", "neither"])


def another_head(folder: Path) -> None:
    change(folder / "config.json", label_names=["even", "odd", "neither"], num_classes=3)


def no_such_licence(folder: Path) -> None:
    change(folder / "card.json", license="wtfpl-ish")


def a_licence_in_words(folder: Path) -> None:
    change(folder / "card.json", license="Free for all")


def an_unknown_fact(folder: Path) -> None:
    change(folder / "card.json", licence="mit")


def broken_metadata(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [mit\n---\nMy own words.\n")


def a_token_in_the_command(folder: Path) -> None:
    change(folder / "card.json", command="recipes/train.py --hub_token hf_abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "is no folder"),
        (no_configuration, "no teacher of ule_hf"),
        (no_weights, "weights cannot be loaded"),
        (half_the_weights, "weights cannot be loaded"),
        (one_label_name_too_many, "2 classes"),
        (another_head, "weights"),
        (no_such_licence, '"license" must be one of'),
        (a_licence_in_words, "Free for all"),
        (an_unknown_fact, "licence"),
        (broken_metadata, "README.md"),
        (a_token_in_the_command, "access token"),
    ],
)
def test_a_folder_that_cannot_be_pushed(hub, folder, capsys, spoil, message):
    spoil(folder)
    assert cli(["push", str(folder), "me/digits"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not hub.repositories


def test_a_student_that_is_not_there(hub, folder, capsys):
    shutil.rmtree(folder / "student")
    assert cli(["push", str(folder), "me/digits", "--with_student"]) == 2
    assert "holds no student" in capsys.readouterr().err and not hub.repositories
    assert cli(["push", str(folder), "me/digits"]) == 0
    with pytest.raises(UleError, match="holds no student"):
        load_student("me/digits")


@pytest.mark.parametrize(
    ("repo", "message"),
    [("not/an/id", "is no Hub id"), ("a name", "is no Hub id"), ("theirs/digits", "has no right")],
)
def test_a_repository_that_cannot_be_written(hub, folder, capsys, repo, message):
    assert cli(["push", str(folder), repo]) == 2
    assert message in capsys.readouterr().err and not hub.repositories


@pytest.mark.parametrize(
    ("token", "message"),
    [(READER, "your token has no right"), ("hf_expired", "does not accept your token"), (None, "no token of the Hub")],
)
def test_tokens(hub, folder, monkeypatch, capsys, token, message):
    huggingface_hub.create_repo("me/there")
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    for repo in ("me/digits", "me/there"):
        assert cli(["push", str(folder), repo]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert hub.repositories.keys() == {("model", "me/there")} and hub.files("me/there") == {}


def test_names_that_stand_for_something_else(hub, folder, capsys):
    huggingface_hub.create_repo("me/data", repo_type="dataset")
    assert cli(["push", str(folder), "me/data"]) == 2
    assert "me/data: is a dataset" in capsys.readouterr().err
    assert hub.repositories.keys() == {("dataset", "me/data")}

    huggingface_hub.create_repo("me/bert")
    huggingface_hub.upload_file(
        path_or_fileobj=b'{"model_type": "bert"}', path_in_repo="config.json", repo_id="me/bert"
    )
    before = dict(hub.files("me/bert"))
    assert cli(["push", str(folder), "me/bert"]) == 2
    assert "already holds another model" in capsys.readouterr().err and hub.files("me/bert") == before
    with pytest.raises(UleError, match="no teacher of ule_hf"):
        load_teacher("me/bert")

    assert cli(["push", str(folder), "me/digits"]) == 0
    assert cli(["push", str(folder), "me/digits", "--private"]) == 2
    assert "public" in capsys.readouterr().err


def test_a_repository_without_a_processor(hub, folder):
    push_teacher(folder, "me/digits")
    huggingface_hub.delete_file("model.safetensors", "me/digits")
    with pytest.raises(UleError, match="weights cannot be loaded"):
        load_teacher("me/digits")
    vit = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "id2label": {"0": "even", "1": "odd"}}
    huggingface_hub.upload_file(
        path_or_fileobj=json.dumps(vit).encode(), path_in_repo="config.json", repo_id="me/digits"
    )
    with pytest.raises(UleError, match="no image processor"):
        load_teacher("me/digits")


@pytest.mark.parametrize(("name", "message"), [("nowhere/folder", "no such repository"), ("not/an/id", "is no Hub id")])
def test_nothing_to_load(hub, name, message):
    with pytest.raises(UleError, match=rf"{name}: no local folder; .*{message}"):
        load_teacher(name)


def test_a_revision_that_does_not_exist(hub, folder):
    push_teacher(folder, "me/digits")
    with pytest.raises(UleError, match="has no such revision"):
        load_teacher("me/digits", revision="v9")


def test_a_hub_that_fails_is_said_to_be_away(hub):
    hub.fault = lambda method, path: (500, {"error": "out of order"})
    with pytest.raises(UleError, match="the Hub can"):
        load_teacher("me/never-seen")
