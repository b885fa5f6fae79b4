"""What tells results of other data or code apart."""

from __future__ import annotations

import re
import shutil
import subprocess

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ule_hf import provenance
from ule_hf.data import load
from ule_hf.provenance import data_fingerprint, git_revision


def rows(ids=("a", "b"), labels=(0, 1), names=("cat", "dog")) -> DatasetDict:
    features = Features(image_id=Value("string"), label=ClassLabel(names=list(names)))
    return DatasetDict(train=Dataset.from_dict({"image_id": list(ids), "label": list(labels)}, features=features))


def test_the_fingerprint_is_of_the_content():
    others = [rows(ids=("b", "a")), rows(labels=(1, 0)), rows(names=("dog", "cat")), DatasetDict(test=rows()["train"])]
    prints = {data_fingerprint(data) for data in [rows(), *others]}
    assert len(prints) == 5
    assert data_fingerprint(rows().map(lambda row: row, load_from_cache_file=False)) == data_fingerprint(rows())


def test_another_correlation_of_the_shortcut_is_other_data():
    one, same, weaker = (load("digits", **options) for options in ({}, {}, {"correlation": 0.9}))
    assert data_fingerprint(one) == data_fingerprint(same) != data_fingerprint(weaker)


def test_the_revision_is_the_checkout_s(tmp_path, monkeypatch):
    package = tmp_path / "ule_hf"
    package.mkdir()
    shutil.copy(provenance.__file__, package)
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    assert git_revision() is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{40}", git_revision())
    (package / "provenance.py").write_text("changed")
    assert git_revision().endswith("-dirty")
