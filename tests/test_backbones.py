from __future__ import annotations

import json
import logging
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import get_model_input_config
from timm.models._hub import save_for_hf
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    PoolFormerImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from ule_hf.backbones import is_convolutional, load_backbone, save_backbone
from ule_hf.errors import UleError
from ule_hf.seeds import named_seed

NAMES = ["finch", "gull", "heron"]
TINY_SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
TINY_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# name -> architecture, model_args, image_size (None: the architecture's own), has convolutions
TIMM = {
    "resnet": ("test_resnet", {}, None, True),
    "vit": ("test_vit", {}, 64, False),
    "convnext": ("test_convnext", {}, 64, True),
    "efficientnet": ("test_efficientnet", {}, 64, True),
    "swin": ("swin_tiny_patch4_window7_224", TINY_SWIN, 64, False),
    "rope": ("vit_small_patch16_rope_224", TINY_VIT, 64, False),
    "channels": ("resnet18", {"channels": [8, 8, 16, 16]}, 32, True),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def vit_folder(folder: Path, **changes) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(image_size=32, patch_size=8, id2label=dict(enumerate(NAMES)), **sizes, **changes)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def resnet_folder(folder: Path) -> Path:
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 16], "depths": [1, 1]}
    ResNetForImageClassification(ResNetConfig(id2label=dict(enumerate(NAMES)), **sizes)).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 48}).save_pretrained(folder)
    return folder


def timm_folder(folder: Path, architecture: str = "test_resnet", **arguments) -> Path:
    classifier, processor = load_backbone(architecture, label_names=NAMES, **(arguments or {"image_size": 32}))
    save_backbone(classifier, processor, folder)
    return folder


def load_family(family: str, tmp_path: Path):
    if family in TIMM:
        architecture, model_args, image_size, _ = TIMM[family]
        return load_backbone(architecture, label_names=NAMES, model_args=model_args, image_size=image_size)
    folder = {"hf_vit": vit_folder, "hf_resnet": resnet_folder}[family](tmp_path / "source")
    return load_backbone(folder, label_names=NAMES)


FAMILIES = [*TIMM, "hf_vit", "hf_resnet"]


def move_every_tensor(model: nn.Module) -> None:
    """Away from any initialisation, buffers too, so that a tensor lost on the way shows in the logits."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.add_(0.5 * noise if "running" in name else 0.1 * (noise - 0.5))


def a_picture(width: int = 130, height: int = 90) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


@torch.no_grad()
def logits_of(classifier, processor, picture) -> torch.Tensor:
    return classifier(**processor(picture, return_tensors="pt")).logits[0]


def changed(a: nn.Module, b: nn.Module) -> set[str]:
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return {k for k in a if a[k].shape != b[k].shape or not torch.equal(a[k], b[k])}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_folder_has_the_same_logits_in_every_reader(family, tmp_path):
    classifier, processor = load_family(family, tmp_path)
    move_every_tensor(classifier)
    convolutional = TIMM[family][3] if family in TIMM else family == "hf_resnet"
    assert is_convolutional(classifier) is convolutional
    if convolutional:  # the layout that it will have been trained in
        classifier.to(memory_format=torch.channels_last)
    picture, folder = a_picture(), tmp_path / "saved"
    expected = logits_of(classifier, processor, picture)
    assert expected.std() > 1e-3, "logits that hardly differ would pass with wrong weights"
    save_backbone(classifier, processor, folder)

    def assert_same(logits):
        torch.testing.assert_close(torch.as_tensor(logits), expected, atol=1e-5, rtol=1e-5)

    model, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_same(logits_of(model, AutoImageProcessor.from_pretrained(folder), picture))

    scores = pipeline("image-classification", str(folder))(picture, function_to_apply="none", top_k=None)
    scores = {score["label"]: score["score"] for score in scores}
    assert_same([scores[name] for name in NAMES])

    again, its_processor = load_backbone(folder, label_names=NAMES)
    assert changed(again, classifier) == set()
    assert_same(logits_of(again, its_processor, picture))

    if family in TIMM:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
        with torch.no_grad():
            assert_same(model(transform(picture)[None])[0])
        assert model.pretrained_cfg["label_names"] == NAMES
        assert model.pretrained_cfg["num_classes"] == 3
        fixed = get_model_input_config(classifier.timm_model)["fixed_input_size"]
        assert model.pretrained_cfg["fixed_input_size"] is fixed
    assert not list(folder.glob(".*")), "a temporary file was left behind"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # older transformers refuse a file without it


@pytest.mark.parametrize("family", FAMILIES)
def test_double_backward_reaches_every_parameter(family, tmp_path):
    classifier, processor = load_family(family, tmp_path)
    move_every_tensor(classifier)
    classifier.train()
    x = processor([a_picture(), a_picture(90, 130)], return_tensors="pt")["pixel_values"].requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        logits = classifier(pixel_values=x).logits
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 2]))
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    with_slope = torch.autograd.grad(
        slope.square().sum(), list(classifier.parameters()), retain_graph=True, allow_unused=True
    )
    (loss + slope.square().sum()).backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    # Not only the loss's own gradient: the slope itself depends on the weights of every layer.
    reached = [g is not None and g.abs().max() > 0 for g in with_slope]
    weights = [p.ndim > 1 for p in classifier.parameters()]
    assert sum(r for r, w in zip(reached, weights, strict=True) if w) >= 0.9 * sum(weights)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_from_scratch_is_timms_own_initialisation(architecture):
    classifier, _ = load_backbone(architecture, label_names=NAMES, seed=5)
    torch.manual_seed(named_seed(5, "weights"))
    reference = timm.create_model(architecture, num_classes=3)
    assert changed(classifier.timm_model, reference) == set()
    assert not classifier.training


def test_convolutions_from_scratch_do_not_have_the_wrappers_spread():
    classifier, _ = load_backbone("resnet18", label_names=NAMES)
    weight = classifier.timm_model.layer1[0].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # He, fan out; not 0.02
    assert classifier.timm_model.layer1[0].bn2.weight.abs().max() == 0  # timm's zero_init_last


def test_seeds_differ_in_all_random_weights_and_leave_the_global_state_alone():
    state = torch.get_rng_state()
    first, again, other = (load_backbone("test_resnet", label_names=NAMES, seed=s, image_size=32)[0] for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert changed(first, again) == set()
    matrices = {name for name, parameter in first.named_parameters() if parameter.ndim > 1}
    assert matrices <= changed(first, other)


HEADS = [
    (timm_folder, {"timm_model.fc.weight", "timm_model.fc.bias"}),
    (vit_folder, {"classifier.weight", "classifier.bias"}),
    (resnet_folder, {"classifier.1.weight", "classifier.1.bias"}),
]


@pytest.mark.parametrize(("make", "head"), HEADS)
@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "b", "c", "d"], NAMES[::-1]])
def test_other_label_names_get_a_new_head_and_nothing_else(make, head, names, tmp_path):
    folder = make(tmp_path)
    kept, _ = load_backbone(folder, label_names=NAMES)
    student, _ = load_backbone(folder, label_names=names, seed=1)
    teacher, _ = load_backbone(folder, label_names=names, seed=2)
    again, _ = load_backbone(folder, label_names=names, seed=2)
    assert changed(kept, teacher) == head
    assert changed(student, teacher) == head
    assert changed(teacher, again) == set()
    assert teacher.config.id2label == dict(enumerate(names))
    assert teacher.config.label2id == {name: i for i, name in enumerate(names)}
    assert teacher.config.num_labels == len(names)
    for name in head:
        assert teacher.state_dict()[name].abs().max() > 0 and teacher.state_dict()[name].isfinite().all()


def test_label_names_survive_transformers_own_saving(tmp_path):
    classifier, _ = load_backbone(timm_folder(tmp_path / "a"), label_names=["x", "y"])
    classifier.save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b/config.json").read_text())["label_names"] == ["x", "y"]


def test_only_the_report_of_the_new_head_is_silenced(tmp_path):
    folder, records = timm_folder(tmp_path), []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(handler)
    try:
        load_backbone(folder, label_names=["x", "y"])
        assert not [r for r in records if "LOAD REPORT" in r.getMessage()]
        AutoModelForImageClassification.from_pretrained(folder, num_labels=2, ignore_mismatched_sizes=True)
        assert [r for r in records if "LOAD REPORT" in r.getMessage()]
    finally:
        logger.removeHandler(handler)


def test_a_folder_saved_by_timm_loads(tmp_path):
    reference = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64, **TINY_VIT).eval()
    save_for_hf(reference, tmp_path, model_config={"label_names": NAMES}, safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["num_classes"] == 3  # the trap
    classifier, processor = load_backbone(tmp_path, label_names=NAMES)
    assert changed(classifier.timm_model, reference) == set()
    assert processor(a_picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


def test_what_described_the_former_weights_is_dropped(tmp_path):
    folder = timm_folder(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"label_offset": 1, "test_input_size": [3, 288, 288], "hf_hub_id": "timm/other"}
    (folder / "config.json").write_text(json.dumps(config))
    classifier, processor = load_backbone(folder, label_names=NAMES)
    save_backbone(classifier, processor, tmp_path / "b")
    # With a label offset timm cuts the first class off the head, and fails.
    model = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True)
    assert changed(model, classifier.timm_model) == set()
    assert not {"test_input_size", "hf_hub_id"} & model.pretrained_cfg.keys()


def test_the_given_image_processor_is_saved(tmp_path):
    classifier, _ = load_backbone("test_resnet", label_names=NAMES, image_size=32)
    _, other = load_backbone("test_resnet", label_names=NAMES, image_size=64)
    save_backbone(classifier, other, tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path)(a_picture())["pixel_values"].shape == (1, 3, 64, 64)


def test_a_timm_folder_saved_by_transformers_loads(tmp_path):
    saved, _ = load_backbone("test_resnet", label_names=NAMES)
    saved.save_pretrained(tmp_path)
    assert all(key.startswith("timm_model.") for key in load_file(tmp_path / "model.safetensors"))
    classifier, _ = load_backbone(tmp_path, label_names=NAMES)
    assert changed(classifier, saved) == set()


@pytest.mark.parametrize("make", [timm_folder, vit_folder])
def test_a_hub_id_is_read_from_the_cache(make, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--birds"
    local = make(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    classifier, processor = load_backbone("someone/birds", label_names=NAMES)
    reference, its_processor = load_backbone(local, label_names=NAMES)
    assert changed(classifier, reference) == set()
    assert torch.equal(logits_of(classifier, processor, a_picture()), logits_of(reference, its_processor, a_picture()))
    with pytest.raises(UleError, match=r"^someone/birds: neither .*"):
        load_backbone("someone/birds", label_names=NAMES, revision="no-such-branch")


def test_half_precision_weights_train_in_float32(tmp_path):
    vit_folder(tmp_path)
    ViTForImageClassification.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    classifier, _ = load_backbone(tmp_path, label_names=NAMES)
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}


def test_a_saved_flash_attention_is_replaced(tmp_path):
    config = vit_folder(tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attn_implementation": "flash_attention_2"}))
    classifier, _ = load_backbone(tmp_path, label_names=NAMES)
    assert classifier.config._attn_implementation == "sdpa"


# --- image processors


def left_black_right_white(width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height))
    picture.paste((255, 255, 255), (width // 2, 0, width, height))
    return picture


@pytest.mark.parametrize("family", ["timm", "hf_vit", "hf_resnet"])
def test_image_size_keeps_the_whole_picture(family, tmp_path):
    if family == "timm":
        _, processor = load_backbone("test_resnet", label_names=NAMES, image_size=32)
    else:
        folder = {"hf_vit": vit_folder, "hf_resnet": resnet_folder}[family](tmp_path)
        _, processor = load_backbone(folder, label_names=NAMES, image_size=32)
    # ResNet's and ConvNeXt's processors of transformers crop what is not square; the others squeeze.
    side = (200, 200) if family == "hf_resnet" else (400, 200)
    picture = Image.new("RGB", side)
    picture.paste((255, 255, 255), (side[0] // 16, side[1] // 16, side[0] * 15 // 16, side[1] * 15 // 16))
    pixels = processor(picture, return_tensors="pt")["pixel_values"][0, 0]
    assert pixels.shape == (32, 32)
    white = pixels > 0
    assert white.nonzero().min() in (2, 3) and white.nonzero().max() in (28, 29)  # the frame is all there


def test_a_crop_size_follows_image_size(tmp_path):
    folder = resnet_folder(tmp_path)
    PoolFormerImageProcessor().save_pretrained(folder)
    _, processor = load_backbone(folder, label_names=NAMES, image_size=48)
    assert processor(a_picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 48)


def test_without_image_size_the_pretrained_configuration_rules():
    _, processor = load_backbone("test_resnet", label_names=NAMES)
    cfg = timm.get_pretrained_cfg("test_resnet")
    kept = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    assert processor.data_config == {key: getattr(cfg, key) for key in kept}
    pixels = processor(left_black_right_white(400, 400), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, *cfg.input_size)
    corner = (1 - torch.tensor(cfg.mean)) / torch.tensor(cfg.std)
    torch.testing.assert_close(pixels[0, :, 0, -1], corner)


def test_the_size_in_model_args_sets_the_processor():
    _, processor = load_backbone("test_vit", label_names=NAMES, model_args={"img_size": 48})
    assert processor.data_config["input_size"] == (3, 48, 48)


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [("vit_tiny_patch16_224", TINY_VIT), ("swin_tiny_patch4_window7_224", {**TINY_SWIN, "window_size": 7})],
)
def test_a_pretrained_model_of_fixed_size_is_resampled(architecture, model_args, tmp_path):
    folder = timm_folder(tmp_path / "224", architecture, model_args=model_args)
    classifier, processor = load_backbone(folder, label_names=NAMES, image_size=64)
    move_every_tensor(classifier)
    expected = logits_of(classifier, processor, a_picture())
    save_backbone(classifier, processor, tmp_path / "64")
    again, its_processor = load_backbone(tmp_path / "64", label_names=NAMES)
    torch.testing.assert_close(logits_of(again, its_processor, a_picture()), expected)
    assert its_processor.data_config["input_size"] == (3, 64, 64)
    rebuilt = type(classifier)(classifier.config)
    rebuilt.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(logits_of(rebuilt.eval(), processor, a_picture()), expected)
    model = timm.create_model(f"local-dir:{tmp_path / '64'}", pretrained=True).eval()
    x = processor(a_picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], expected)


def test_resampling_keeps_the_pretrained_position_embedding(tmp_path):
    folder = timm_folder(tmp_path, "vit_tiny_patch16_224", model_args=TINY_VIT)
    large = load_backbone(folder, label_names=NAMES)[0].timm_model.pos_embed
    small = load_backbone(folder, label_names=NAMES, image_size=112)[0].timm_model.pos_embed
    grid = large[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(7, 7), mode="bicubic", antialias=True)
    torch.testing.assert_close(small[:, 1:], grid.flatten(2).transpose(1, 2))


# --- weights files


@pytest.mark.parametrize("prefix", ["", "timm_model."])
def test_a_weights_file_fills_everything_but_a_head_of_another_size(prefix, tmp_path):
    reference = timm.create_model("test_efficientnet", num_classes=7)
    move_every_tensor(reference)
    path = tmp_path / "weights.safetensors"
    save_file({prefix + key: value for key, value in reference.state_dict().items()}, path)
    classifier, _ = load_backbone("test_efficientnet", label_names=NAMES, checkpoint_path=path)
    assert changed(classifier.timm_model, reference) == {"classifier.weight", "classifier.bias"}
    head = classifier.timm_model.classifier  # drawn as torch draws it: timm's would be 25 times as wide
    assert head.weight.detach().abs().max() <= head.in_features**-0.5
    classifier, _ = load_backbone("test_efficientnet", label_names=list("abcdefg"), checkpoint_path=path)
    assert changed(classifier.timm_model, reference) == set()


def test_a_tag_chooses_the_configuration_of_a_weights_file(tmp_path):
    path, tag = tmp_path / "weights.safetensors", "vit_small_patch16_224.dino"
    save_file(timm.create_model("vit_small_patch16_224", **TINY_VIT).state_dict(), path)
    _, processor = load_backbone(tag, label_names=NAMES, checkpoint_path=path, model_args=TINY_VIT)
    assert timm.get_pretrained_cfg("vit_small_patch16_224").mean != timm.get_pretrained_cfg(tag).mean
    assert processor.data_config["mean"] == timm.get_pretrained_cfg(tag).mean
