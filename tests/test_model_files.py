"""Folders that somebody planted: refused in one line, at once, and nothing of theirs is run."""

from __future__ import annotations

import json
import pickle
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification

from tests.test_backbones import NAMES, changed, timm_folder, vit_folder
from ule_hf.backbones import load_backbone
from ule_hf.card import CONFIG_FILE
from ule_hf.errors import UleError
from ule_hf.hub import load_teacher


class Planted:
    """Unpickling it writes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def refused(folder: Path, *words: str) -> str:
    """What both ways to load it say; neither takes much memory."""
    (folder / CONFIG_FILE).write_text("{}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in (lambda: load_backbone(folder, label_names=NAMES), lambda: load_teacher(folder)):
        with pytest.raises(UleError) as error:
            load()
        assert len(str(error.value).splitlines()) == 1
        for word in words:
            assert word in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"
    return str(error.value)


def change(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"hidden_size": 10**5, "intermediate_size": 10**5}, "more parameters than its weights have"),
        ({"num_hidden_layers": 10**6}, "more"),
        ({"image_size": 10**9}, "image_size"),
        ({"image_size": 10**6}, "more parameters"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"hidden_size": -16}, "config.json"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"patch_size": 0}, "config.json"),
        ({"hidden_size": "16; import os"}, "config.json"),
        ({"hidden_size": float("inf")}, "hidden_size"),
        ({"model_type": "../../etc"}, "config.json"),
        ({"model_type": ["vit"]}, "config.json"),
        ({"__class__": "os.system"}, "config.json"),
        ({"id2label": {"0": "a", "zero": "b"}}, "config.json"),
    ],
    ids=str,
)
def test_a_crafted_configuration(tmp_path, changes, word):
    change(vit_folder(tmp_path) / "config.json", **changes)
    refused(tmp_path, str(tmp_path), word)


def test_unknown_keys_are_passed_over(tmp_path):
    change(vit_folder(tmp_path) / "config.json", no_such_key="x", torch_dtype="float32")
    classifier, _ = load_backbone(tmp_path, label_names=NAMES)
    assert type(classifier) is ViTForImageClassification


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", '"vit"', "\ufffe"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_json_that_is_no_configuration(tmp_path, file, text):
    (vit_folder(tmp_path) / file).write_text(text)
    refused(tmp_path, f"its {file}")


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "local-dir:/etc"},
        {"architecture": "hf-hub:somebody/else"},
        {"architecture": "../test_resnet"},
        {"architecture": ["test_resnet"]},
        {"model_args": {"checkpoint_path": "planted.pt"}},
        {"model_args": {"pretrained": True, "pretrained_cfg": {"file": "planted.pt"}}},
        {"model_args": {"pretrained_cfg_overlay": {"file": "planted.pt"}}},
        {"model_args": {"width_factor": 10**9}},
        {"model_args": "checkpoint_path"},
        {"pretrained_cfg": {"input_size": [3, 10**5, 10**5]}},
        {"pretrained_cfg": {"crop_pct": 1e-6, "input_size": [3, 32, 32]}},
    ],
    ids=str,
)
def test_a_crafted_timm_configuration(tmp_path, changes):
    folder, planted = timm_folder(tmp_path / "model"), tmp_path / "executed"
    (folder / "planted.pt").write_bytes(pickle.dumps(Planted(planted)))
    if "checkpoint_path" in changes.get("model_args", {}):
        changes = {"model_args": {"checkpoint_path": str(folder / "planted.pt")}}
    change(folder / "config.json", **changes)
    refused(folder, "config.json")
    assert not planted.exists()


@pytest.mark.parametrize(
    "changes", [{"size": {"height": 10**6, "width": 10**6}}, {"size": {"shortest_edge": 32}, "crop_pct": 1e-9}]
)
def test_crafted_preprocessing(tmp_path, changes):
    change(vit_folder(tmp_path) / "preprocessor_config.json", **changes)
    refused(tmp_path, "preprocessor_config.json", "which no model needs")


@pytest.mark.parametrize(
    ("file", "auto_class"), [("config.json", "AutoConfig"), ("config.json", "AutoModelForImageClassification"),
                             ("preprocessor_config.json", "AutoImageProcessor")]
)  # fmt: skip
@pytest.mark.parametrize("model_type", ["vit", "brand_new"])
def test_code_in_a_folder_is_not_run(tmp_path, file, auto_class, model_type):
    folder, planted = vit_folder(tmp_path / "model"), tmp_path / "executed"
    (folder / "planted.py").write_text(f"open({str(planted)!r}, 'w')\nclass Planted: pass\n")
    change(folder / "config.json", model_type=model_type)
    change(folder / file, auto_map={auto_class: "planted.Planted"})
    (folder / CONFIG_FILE).write_text("{}")
    for load in (lambda: load_backbone(folder, label_names=NAMES), lambda: load_teacher(folder)):
        try:
            load()
        except UleError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert model_type == "vit", "a kind that nobody knows was loaded"
    assert not planted.exists()


def test_no_pickle_is_opened(tmp_path):
    folder, planted = vit_folder(tmp_path / "model"), tmp_path / "executed"
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "model.ckpt",
        "rng_state.pth",
    ):
        (folder / name).write_bytes(pickle.dumps(Planted(planted)))
    (folder / CONFIG_FILE).write_text("{}")
    load_backbone(folder, label_names=NAMES)
    load_teacher(folder)
    (folder / "model.safetensors").unlink()
    refused(folder, "only safetensors are read")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    refused(folder, "only safetensors are read")
    assert not planted.exists()
    pickle.loads((folder / "optimizer.pt").read_bytes())
    assert planted.exists(), "what was planted would have been seen"


def header(**tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60),
        header(w={"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}),
        header(w={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}),
        header(w={"dtype": "EVIL", "shape": [1], "data_offsets": [0, 4]}) + bytes(4),
        header(w={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + bytes(4),
        b"",
    ],
    ids=["long header", "huge tensor", "cut", "dtype", "negative", "empty"],
)
def test_crafted_weights(tmp_path, content):
    (vit_folder(tmp_path) / "model.safetensors").write_bytes(content)
    refused(tmp_path, "its weights cannot be loaded", "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    file = vit_folder(tmp_path) / "model.safetensors"
    weights = load_file(file)
    weights["classifier.weight"][0, 0] = value
    save_file(weights, file, metadata={"format": "pt"})
    refused(tmp_path, "NaN or infinity", "classifier.weight")


def test_weights_in_several_files(tmp_path):
    whole = ViTForImageClassification.from_pretrained(vit_folder(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    whole.save_pretrained(tmp_path, max_shard_size="8KB")
    index = tmp_path / "model.safetensors.index.json"
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    classifier, _ = load_backbone(tmp_path, label_names=NAMES)
    assert changed(classifier, whole) == set()
    listed = json.loads(index.read_text())
    name = next(iter(listed["weight_map"]))
    torch.save(whole.state_dict(), tmp_path / "model.pt")
    for stranger in ("../model.safetensors", "/etc/passwd", "model.pt", "gone.safetensors", 3):
        index.write_text(json.dumps({**listed, "weight_map": {**listed["weight_map"], name: stranger}}))
        refused(tmp_path, "file of the folder" if str(stranger)[0] in "./3" else str(stranger))
