"""What a stranger may have put into a repository is refused, or left where it is."""

from __future__ import annotations

import json
import pickle

import huggingface_hub
import pytest
import torch
from safetensors.torch import save

from tests.test_backbones import NAMES, vit_folder
from tests.test_model_files import Planted
from ule_hf import UleError, load_backbone, load_teacher

REPOSITORY = "me/planted"


@pytest.fixture
def files(hub, tmp_path):
    """A good model on the Hub, with pickles and code beside it; its files, to be changed and pushed again."""
    folder = vit_folder(tmp_path / "model")
    planted = pickle.dumps(Planted(tmp_path / "executed"))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "checkpoint-1/rng_state.pth"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(planted)
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Planted: pass\n")
    (folder / "ule_config.json").write_text("{}")
    huggingface_hub.create_repo(REPOSITORY)
    yield folder
    assert not (tmp_path / "executed").exists()


def push(folder, **changed):
    for name, values in changed.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    huggingface_hub.upload_folder(repo_id=REPOSITORY, folder_path=folder)


def refused(*words):
    for load in (lambda: load_backbone(REPOSITORY, label_names=NAMES), lambda: load_teacher(REPOSITORY)):
        with pytest.raises(UleError) as error:
            load()
        assert len(str(error.value).splitlines()) == 1
        assert str(error.value).startswith(REPOSITORY)
        for word in words:
            assert word in str(error.value)


def test_neither_pickles_nor_code_are_fetched(hub, files):
    push(files)
    hub.requests.clear()
    load_backbone(REPOSITORY, label_names=NAMES)
    load_teacher(REPOSITORY)
    fetched = {path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= fetched
    assert not any(name.endswith((".bin", ".pt", ".pth", ".py")) for name in fetched)


def test_code_for_a_kind_of_model_that_nobody_knows(files):
    push(files, config={"model_type": "brand_new", "auto_map": {"AutoConfig": "planted.Planted"}})
    refused("config.json")


def test_only_a_pickle(files):
    (files / "model.safetensors").unlink()
    push(files)
    refused("only safetensors are read")


@pytest.mark.parametrize(
    ("file", "values", "word"),
    [
        ("config", {"num_labels": 10**9}, "num_labels"),
        ("config", {"hidden_size": 10**5, "intermediate_size": 10**5}, "more parameters than its weights have"),
        ("config", {"model_type": "timm_wrapper", "architecture": "local-dir:/etc"}, "no architecture of timm"),
        ("preprocessor_config", {"size": {"height": 10**6, "width": 10**6}}, "which no model needs"),
    ],
)
def test_crafted_files(files, file, values, word):
    push(files, **{file: values})
    refused(word)


def test_weights_that_are_not_finite(files):
    (files / "model.safetensors").write_bytes(save({"classifier.bias": torch.full((3,), torch.nan)}))
    push(files)
    refused()
