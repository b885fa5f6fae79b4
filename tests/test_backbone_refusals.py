"""What cannot be loaded or saved as a backbone is refused in one line."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from tests.test_backbones import NAMES, offline, timm_folder, vit_folder  # noqa: F401
from ule_hf.backbones import load_backbone, save_backbone
from ule_hf.errors import UleError


def fails(*words: str, **arguments) -> str:
    with pytest.raises(UleError) as error:
        load_backbone(**{"label_names": NAMES, **arguments})
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_unknown_names(tmp_path):
    fails("resnet81", "did you mean", "resnet18", name_or_path="resnet81")
    fails("resnet50.a1_in2k", "resnet50.a1_in1k", name_or_path="resnet50.a1_in2k")
    fails("timm/resnet50.a1_in1k", "from scratch", name_or_path="resnet50.a1_in1k")
    fails("nobody/nothing", "Hub", "outgoing traffic", name_or_path="nobody/nothing")
    fails("no/such/folder", name_or_path="./no/such/folder")
    fails("config.json", name_or_path=tmp_path)


def test_folders_without_a_classifier(tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    fails("'bert'", "no image classifier", name_or_path=tmp_path / "bert")
    vit_folder(tmp_path / "no_processor")
    (tmp_path / "no_processor/preprocessor_config.json").unlink()
    fails("image processor", name_or_path=tmp_path / "no_processor")


def test_no_pickle_is_read(tmp_path):
    folder = vit_folder(tmp_path / "model")
    weights, pickle = folder / "model.safetensors", folder / "pytorch_model.bin"
    torch.save(load_file(weights), pickle)  # a good one: it would load
    weights.unlink()
    fails("only safetensors are read", name_or_path=folder)
    fails("convert", "save_file", name_or_path="test_resnet", checkpoint_path=pickle)
    fails("cannot be read", name_or_path="test_resnet", checkpoint_path=pickle.rename(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("make", [timm_folder, vit_folder])
def test_incomplete_or_misshapen_weights_are_not_filled_in_silently(make, tmp_path):
    path = make(tmp_path) / "model.safetensors"
    weights = load_file(path)
    name = next(key for key, value in weights.items() if value.ndim == 4)
    save_file({k: v for k, v in weights.items() if k != name}, path, metadata={"format": "pt"})
    fails(name, "do not fit", name_or_path=tmp_path)
    save_file(weights | {name: weights[name][:-1].contiguous()}, path, metadata={"format": "pt"})
    fails(name, "do not fit", name_or_path=tmp_path)


def test_a_weights_file_of_another_architecture(tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    fails("another architecture", "blocks.0", name_or_path="test_vit", checkpoint_path=path)
    fails("another architecture", "conv1", name_or_path="test_resnet", checkpoint_path=path,
          model_args={"in_chans": 1})  # fmt: skip
    fails("No such file", name_or_path="test_resnet", checkpoint_path=tmp_path / "gone.safetensors")
    fails("its own weights", name_or_path=vit_folder(tmp_path / "vit"), checkpoint_path=path)


def test_arguments_that_do_not_fit(tmp_path):
    fails("test_resnet", "no_such", name_or_path="test_resnet", model_args={"no_such": 1})
    fails("num_classes", name_or_path="test_resnet", model_args={"num_classes": 3})
    fails("pretrained", name_or_path="test_resnet", model_args={"pretrained": True})
    fails("logit", name_or_path="test_resnet", model_args={"features_only": True})
    fails("channels", name_or_path="test_resnet", model_args={"in_chans": 1})
    fails("no timm model", name_or_path=vit_folder(tmp_path), model_args={"depth": 1})
    fails("image_size", name_or_path=tmp_path, image_size=64)  # a transformers ViT is not resampled
    fails("image_size", "divisible", name_or_path="test_vit", image_size=20)
    fails("image_size", "img_size", "give one", name_or_path="vit_tiny_patch16_224", image_size=64,
          model_args={"img_size": 48})  # fmt: skip
    fails("image_size", name_or_path="test_resnet", image_size=0)
    fails("label_names", name_or_path="test_resnet", label_names=["one"])
    fails("label_names", name_or_path="test_resnet", label_names=["one", "one"])


def test_an_image_processor_of_the_other_library_is_refused(tmp_path):
    of_timm = load_backbone("test_resnet", label_names=NAMES, image_size=32)
    of_transformers = load_backbone(vit_folder(tmp_path / "vit"), label_names=NAMES)
    for classifier, processor in [
        (of_timm[0], of_transformers[1]),
        (of_transformers[0], of_timm[1]),
        (of_timm[0], None),
    ]:
        with pytest.raises(UleError, match="of its own library"):
            save_backbone(classifier, processor, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
