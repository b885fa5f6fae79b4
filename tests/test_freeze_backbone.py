"""A linear probe: what is outside the head stays as it is, in every bit, and works as in evaluation."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.baselines.bed import LABELS, pictures
from ule_hf import load_teacher
from ule_hf.arguments import MethodArguments, ModelArguments, parse
from ule_hf.backbones import freeze_backbone, head_names, load_backbone, save_backbone
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError
from ule_hf.experiment import fit
from ule_hf.pair import StudentTeacher
from ule_hf.step_cost import measure_step_cost
from ule_hf.task import load_initial

FAMILIES = ["resnet", "vit", "hf_vit"]
TIMM = {"resnet": "test_resnet", "vit": "test_vit"}
# what a frozen backbone must not do; timm does not save it
DROP = {
    "resnet": {"drop_path_rate": 0.5, "drop_rate": 0.5},
    "vit": {"drop_path_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "pos_drop_rate": 0.5},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Models with weights and running statistics of their own, as a pretrained one has; name -> folder."""
    torch.manual_seed(0)
    made = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, architecture in TIMM.items():
        classifier, processor = load_backbone(architecture, label_names=LABELS, image_size=32)
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        save_backbone(classifier, processor, made[name])
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(made["hf_vit"])
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(made["hf_vit"])
    return {name: str(folder) for name, folder in made.items()}


@pytest.fixture(scope="module")
def data():
    return pictures(train=64)


def model_arguments(folders, family: str, freeze: bool = True) -> ModelArguments:
    drop = json.dumps(DROP[family]) if family in DROP else None
    return ModelArguments(model=folders[family], model_args=drop, freeze_backbone=freeze)


def initial(model_args: ModelArguments, seed: int = 0, name: str = "teacher"):
    return load_initial(model_args, list(LABELS), seed, name)[0]


def train(model_args, output_dir, data, method="erm", steps=2, **options):
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "save_total_limit": None,
        "seed": 3,
    }
    args = ULEConfig(str(output_dir), **(settings | options))
    return fit(data, "none", model_args, args, method_args=MethodArguments(method=method))


def assert_only_the_head_differs(before: nn.Module, folder) -> None:
    trained = AutoModelForImageClassification.from_pretrained(folder)
    assert trained.state_dict().keys() == before.state_dict().keys()
    head = head_names(before)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]) != (name.rpartition(".")[0] in head), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", ["exchange", "path", "paper"])
def test_ule_trains_two_heads(folders, data, tmp_path, family, preset):
    of_exchange = {"head_start_accuracy": None} if preset == "exchange" else {}
    options = {"student_head_start": 0.25, "freeze_student": False, **of_exchange}  # epochs of four steps
    train(model_arguments(folders, family), tmp_path, data, "ule", steps=3, preset=preset, **options)
    for name, folder in (("teacher", tmp_path), ("student", tmp_path / "student")):
        assert_only_the_head_differs(initial(model_arguments(folders, family, freeze=False), 3, name), folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_training_trains_the_head(folders, data, tmp_path, family):
    train(model_arguments(folders, family), tmp_path, data)
    assert_only_the_head_differs(initial(model_arguments(folders, family, freeze=False)), tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["run"]["model"]["freeze_backbone"] is True
    assert "freeze" not in (tmp_path / "config.json").read_text()
    loaded = load_teacher(tmp_path).classifier
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert all(module.training for module in loaded.train().modules())


@pytest.mark.parametrize("method", ["jtt", "lff"])
def test_every_model_of_a_method_is_frozen(folders, data, tmp_path, method):
    train(model_arguments(folders, "resnet"), tmp_path, data, method)
    before = initial(model_arguments(folders, "resnet", freeze=False))
    assert_only_the_head_differs(before, tmp_path)
    assert_only_the_head_differs(before, tmp_path / {"jtt": "first_stage", "lff": "biased"}[method])


def test_resuming_equals_no_interruption(folders, data, tmp_path):
    options = {"method": "ule", "preset": "path", "student_head_start": 0.25, "steps": 3}
    train(model_arguments(folders, "resnet"), tmp_path / "whole", data, **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    train(model_arguments(folders, "resnet"), tmp_path / "resumed", data, resume_from_checkpoint="latest", **options)
    for name in ("model.safetensors", "student/model.safetensors"):
        one, other = (load_file(tmp_path / folder / name) for folder in ("whole", "resumed"))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_training_mode_is_that_of_evaluation(folders, family):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = initial(model_arguments(folders, family, freeze=False))
    with torch.no_grad():
        expected = plain(images).logits
        assert not torch.allclose(plain.train()(images).logits, expected)
        pair = StudentTeacher(*(initial(model_arguments(folders, family)) for _ in range(2)))
        for classifier in (pair.train().teacher, copy.deepcopy(pair).train().teacher):
            in_training = classifier(images).logits
            assert classifier.training and not classifier.eval().training
            assert torch.equal(classifier(images).logits, in_training)
            torch.testing.assert_close(in_training, expected)
    # the copy's train() is that of the copy
    copied = copy.deepcopy(pair.eval()).train()
    assert copied.teacher.training and not pair.teacher.training


def test_the_cost_of_a_step_is_measured(folders, tmp_path):
    pair = StudentTeacher(*(initial(model_arguments(folders, "resnet")) for _ in range(2)))
    before = copy.deepcopy(pair.state_dict())
    args = ULEConfig(str(tmp_path), use_cpu=True)
    measure_step_cost(pair, torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]), args)
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())


def test_a_random_backbone_is_not_frozen(folders, tmp_path, data):
    with pytest.raises(UleError, match=r"freeze_backbone: test_resnet starts from scratch.*--checkpoint_path") as error:
        train(ModelArguments(model="test_resnet", freeze_backbone=True), tmp_path / "out", data)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    weights = f"{folders['resnet']}/model.safetensors"
    given = ModelArguments(model="test_resnet", checkpoint_path=weights, freeze_backbone=True)
    trainable = {name for name, parameter in initial(given).named_parameters() if parameter.requires_grad}
    assert trainable == {"timm_model.fc.weight", "timm_model.fc.bias"}


def test_a_model_without_a_head_is_not_frozen(folders, monkeypatch):
    monkeypatch.setattr("ule_hf.backbones.head_names", lambda classifier: [])
    with pytest.raises(UleError, match="makes logits"):
        freeze_backbone(load_backbone(folders["vit"], label_names=LABELS)[0])


def test_the_option():
    given = ["--dataset", "digits", "--output_dir", "out", "--use_cpu"]
    assert not parse(given)[1].freeze_backbone
    assert parse([*given, "--freeze_backbone", "true"])[1].freeze_backbone
