"""The pages of docs/ that load from the Hub and push to it."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.hub.inside.test_teachers import PICTURE
from tests.pages import check_command, commands, run_python
from ule_hf.cli import main as cli


@pytest.fixture
def working_folder(hub, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "outputs" / "digits")
    PICTURE.save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)


def test_load_a_teacher(working_folder):
    assert cli(["push", "outputs/digits", "me/my-teacher"]) == 0
    names = run_python("load_a_teacher")
    torch.testing.assert_close(names["same_logits"], names["logits"], rtol=1e-4, atol=1e-4)


def test_publish(working_folder, hub):
    for words in commands("publish"):
        check_command(words, run=True)
    assert {"main", "seed-1"} == hub.repositories["model", "me/my-teacher"].branches.keys()
    assert hub.repositories["model", "me/my-secret-teacher"].private
    run_python("publish")
