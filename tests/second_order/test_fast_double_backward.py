"""The rules against PyTorch's own double backward, on small models of every family."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointError, checkpoint
from transformers import ViTConfig, ViTForImageClassification

from tests.second_order.double_backward import plain_double_backward, relative_error, step, worst_relative_error
from ule_hf.pair import StudentTeacher
from ule_hf.second_order import fast_double_backward


def depthwise_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 5, padding="same", groups=8, bias=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.GELU(),
        nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def strided_same_net():
    """timm's TensorFlow-like padding: ``Conv2dSame`` and ``BatchNormAct2d`` with a drop layer between the two."""
    return timm.create_model("test_efficientnet", num_classes=3, pad_type="same")


class TransformersViT(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        self.net = ViTForImageClassification(ViTConfig(**sizes, image_size=48, patch_size=16, num_labels=3))

    def forward(self, images):
        return self.net(images).logits


def timm_net(name):
    return lambda: timm.create_model(name, num_classes=3)


FAMILIES = {
    "resnet": timm_net("test_resnet"),
    "efficientnet": timm_net("test_efficientnet"),
    "convnext": timm_net("test_convnext"),
    "vit": timm_net("test_vit"),
    "transformers_vit": TransformersViT,
    "depthwise": depthwise_net,
    "strided_same": strided_same_net,
}


def make(family, dtype, training, channels_last=False):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    size = model.pretrained_cfg["input_size"][-1] if hasattr(model, "patch_embed") else 48
    images = torch.randn(4, 3, size, size)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(dtype=dtype, memory_format=memory_format).train(training)
    return model, images.to(dtype=dtype, memory_format=memory_format)


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_plain_double_backward(family, dtype, tolerance, training, channels_last):
    model, images = make(family, dtype, training, channels_last)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = step(model, images, plain_double_backward)
    after_plain = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    found = step(model, images, fast_double_backward)
    # In float32 a single small gradient is as far from PyTorch's as PyTorch's is from float64.
    error = worst_relative_error if dtype == torch.float64 else relative_error
    assert error(found, expected) <= tolerance
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, after_plain[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("family", ["resnet", "efficientnet", "convnext", "vit"])
def test_bfloat16_is_not_worse_than_plain(family):
    model, images = make(family, torch.float32, training=True, channels_last=True)
    plain = step(model, images, plain_double_backward, autocast=torch.bfloat16)
    found = step(model, images, fast_double_backward, autocast=torch.bfloat16)
    exact = step(model.double(), images.double(), plain_double_backward)
    assert relative_error(found, exact) <= 1.25 * relative_error(plain, exact)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_frozen_backbone(family):
    model, images = make(family, torch.float64, training=True)
    model.requires_grad_(False)
    list(model.parameters())[-2].requires_grad_(True)
    expected = step(model, images, plain_double_backward)
    assert worst_relative_error(step(model, images, fast_double_backward), expected) <= 1e-10


def test_the_model_is_left_as_it_was():
    model, images = make("efficientnet", torch.float32, training=False)
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with fast_double_backward():
        inside = model(images.requires_grad_())
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == attributes
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "_ConvolutionBackward" in node_names(inside) and "ConvolutionBackward0" not in node_names(inside)
    assert "_ConvolutionBackward" not in node_names(model(images))


def node_names(output):
    names, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node.name() not in names:
            names.add(node.name())
            nodes += [next_node for next_node, _ in node.next_functions]
    return names


def test_nested_and_left_by_an_exception():
    model, images = make("resnet", torch.float64, training=True)
    expected = step(model, images, plain_double_backward)
    with fast_double_backward():
        found = step(model, images, fast_double_backward)
    assert worst_relative_error(found, expected) <= 1e-10
    with pytest.raises(KeyError), fast_double_backward(), fast_double_backward():
        raise KeyError
    assert "_ConvolutionBackward" not in node_names(model(images.requires_grad_()))


def test_without_gradients_it_is_the_plain_forward_pass():
    model, images = make("resnet", torch.float32, training=False)
    with torch.no_grad():
        expected = model(images)
        with fast_double_backward():
            assert torch.equal(model(images), expected)


def test_a_checkpoint_that_repeats_a_layer_outside_of_the_context_is_refused():
    layer, images = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5, requires_grad=True)
    with fast_double_backward():
        y = checkpoint(layer, images, use_reentrant=False)
    with pytest.raises(CheckpointError):
        y.sum().backward()


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_a_training_run_with_and_without_the_rules_gives_the_same_losses(family):
    losses = []
    for without in (False, True):
        models = [make(family, torch.float64, training=True) for _ in range(2)]
        images, labels = models[0][1], torch.tensor([0, 1, 2, 0])
        pair = StudentTeacher(models[0][0], models[1][0]).train()
        pair._recomputes_activations = without  # the one case in which the pair leaves the rules out
        optimizer = torch.optim.SGD(pair.parameters(), lr=0.02, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            output = pair(images, labels, unlearning_weight=1.0)
            output.loss.backward()
            optimizer.step()
            losses.append(torch.stack([output.student_loss, output.teacher_loss, output.unlearning_loss]).detach())
    torch.testing.assert_close(losses[:4], losses[4:], rtol=1e-8, atol=1e-10)
    assert not torch.equal(losses[0], losses[3])
