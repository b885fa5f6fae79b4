"""Models of a comparison looking at the test images that their recorded commands name."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import PIL.Image
import pytest
import torch

from tests.comparison.lines import finished
from tests.report.models import Looker, keep
from tests.report.test_page import Page
from ule_hf.arguments import DataArguments
from ule_hf.data import load
from ule_hf.errors import UleError
from ule_hf.report import walls
from ule_hf.report.explain import load_pair
from ule_hf.report.page import report
from ule_hf.report.walls import ModelFolder, partners_of

COMMAND = "recipes/train.py --dataset digits --shortcut half --correlation 1.0 --preset path"
LOWER = (slice(16, 32), slice(None))


@pytest.mark.slow
def test_the_page_shows_where_the_models_of_a_comparison_look(tmp_path):
    keep(tmp_path / "kept", COMMAND)
    keep(tmp_path / "kept", None, method="jtt", seed=1)
    keep(tmp_path / "kept", "recipes/train.py --dataset folder --data_dir gone", method="afr")
    line = finished("ule_path", 0, 0.5, bed="digits-half")
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    text = report([tmp_path / "runs.jsonl"], tmp_path / "out", tmp_path / "kept", pictures=3, images=8).read_text()
    page = Page(text)
    rows = page.tables["Share of attribution on the object, over 8 test images of each run"]
    assert [row[:3] for row in rows[1:]] == [["ule_path", "student", "1"], ["ule_path", "teacher", "1"]]
    assert all(0 < float(share) < 100 for row in rows[1:] for share in row[3:6])
    assert {row[6] for row in rows[1:]} == {"50.0"}
    shown = [image for image in page.images if image["src"].startswith("data:image/webp")]
    assert len(shown) == 3 and all("student's map" in image["alt"] for image in shown)
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(shown[0]["src"].partition(",")[2])))
    assert picture.width > 500 and np.ptp(np.asarray(picture)) > 200
    assert "jtt, seed 1: no pictures, because" in text and "records no command" in text
    assert "afr, seed 0: no pictures, because data folder gone does not exist" in text


def test_the_methods_of_a_bed_share_their_test_images(tmp_path):
    """Each run's command names its own method and output folder; the data are built once."""
    folders = [keep(tmp_path, f"{COMMAND} --output_dir {method}", method) for method in ("ule_path", "erm")]
    one, other = (
        walls.test_images(ModelFolder(f, "digits-half", m, 0))[0]
        for f, m in zip(folders, ("ule_path", "erm"), strict=True)
    )
    assert one is other
    assert walls.test_images(ModelFolder(folders[0], "digits-half", "ule_path", 1))[0] is not one


def test_shares_of_a_model_that_looks_at_the_object_alone(tmp_path, monkeypatch):
    """The lower half is the object: who sees all of the picture has half of it there, who sees that half has all."""
    folder = ModelFolder(keep(tmp_path, COMMAND), "digits-half", "ule_path", 0)
    pair = load_pair(folder.path)
    everywhere = Looker((slice(None), slice(None)))
    monkeypatch.setattr(walls, "load_pair", lambda path: pair._replace(student=everywhere, teacher=Looker(LOWER)))
    test = load("digits", kind="half", correlation=1.0)["test"]
    student, teacher = walls.shares(folder, test, DataArguments(shortcut="half"), count=8)
    assert (student.model, teacher.model) == ("student", "teacher") and student.images == 8
    assert student.by_kind["gradient"] == pytest.approx(0.5) and teacher.by_kind["gradient"] == 1
    assert teacher.by_kind["path"] == 1 and 0.1 < student.by_kind["path"] < 0.9
    assert student.by_kind["grad_cam"] is None and student.area == 0.5


def test_partners_are_of_another_class():
    labels = torch.tensor([0, 1, 1, 0, 2])
    pixels = labels.view(5, 1, 1, 1).float()
    partners = partners_of(pixels, labels, range(5), seed=0)
    assert partners.shape == (5, walls.PARTNERS, 1, 1, 1)
    assert (partners.flatten(1) != labels[:, None]).all()
    with pytest.raises(UleError, match="one class only"):
        partners_of(pixels, torch.zeros(5), [0], seed=0)
