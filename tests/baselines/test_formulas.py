"""Each method's formula against values worked out by hand or by autograd; nothing is trained."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher
from transformers.utils import ModelOutput

from tests.baselines.bed import tiny_vit
from tests.test_trainer import LABELS, Pictures
from ule_hf.backbones import load_backbone
from ule_hf.baselines import afr, dfr, eiil
from ule_hf.baselines.group_dro import GroupDROTrainer
from ule_hf.baselines.jtt import upweighted_errors
from ule_hf.baselines.last_layer import head_inputs, linear_head
from ule_hf.baselines.lff import BiasedAndDebiased, LfFTrainer
from ule_hf.baselines.sampling import WeightedSampler, balancing_weights
from ule_hf.classifier_trainer import ClassifierTrainer
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError


def trainer_of(kind: type[ClassifierTrainer], folder: Path, **options: Any) -> ClassifierTrainer:
    name = tiny_vit(folder / "vit")
    (model, processor), (other, _) = (load_backbone(name, label_names=LABELS, seed=s) for s in (1, 2))
    model = BiasedAndDebiased(other, model) if kind is LfFTrainer else model
    args = ULEConfig(str(folder / "out"), use_cpu=True, disable_tqdm=True, num_train_epochs=1)
    data = {"train_dataset": Pictures(8, size=8), "eval_dataset": Pictures(8, size=8)}
    return kind(model, args, processing_class=processor, train_group_sizes=[2] * 4, **data, **options)


def logits_with(losses: list[float]) -> torch.Tensor:
    """Two logits an image, whose cross-entropy with label 0 is as given."""
    return torch.tensor([[0.0, math.log(math.expm1(loss))] for loss in losses])


def test_group_dro_moves_its_weights_before_the_step(tmp_path):
    trainer = trainer_of(GroupDROTrainer, tmp_path, train_sizes=[4, 16, 9, 0], step_size=0.5, adjustment=2.0)
    assert trainer.group_weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    inputs = {"labels": torch.zeros(3, dtype=torch.long), "group": torch.tensor([0, 0, 1])}
    loss = trainer.training_loss(ModelOutput(logits=logits_with([1.0, 3.0, 0.5])), inputs)
    # group 0: mean loss 2 and 2/√4; group 1: 0.5 and 2/√16; group 2 is not in the batch
    moved = [math.exp(0.5 * (2 + 1)), math.exp(0.5 * (0.5 + 0.5)), 1.0]
    weights = [value / sum(moved) for value in moved]
    assert trainer.group_weights.tolist() == pytest.approx([*weights, 0])
    assert loss.item() == pytest.approx(weights[0] * 2 + weights[1] * 0.5)


def test_lff_weighs_by_averages_that_are_scaled_within_the_class(tmp_path):
    trainer = trainer_of(LfFTrainer, tmp_path, train_labels=[0] * 8, decay=0.7)

    def step(biased: list[float], debiased: list[float], index: list[int]) -> float:
        output = ModelOutput(biased_logits=logits_with(biased), logits=logits_with(debiased))
        labels = torch.zeros(len(index), dtype=torch.long)
        return trainer.training_loss(output, {"labels": labels, "index": torch.tensor(index)}).item()

    def of_biased(losses: list[float]) -> float:  # (1 − p^q)/q with p = exp(−loss)
        return sum((1 - math.exp(-0.7 * loss)) / 0.7 for loss in losses) / len(losses)

    # first seen: the losses themselves; the largest of the class is 4 for the biased model, 2 for the debiased
    expected = (0.5 / (0.5 + 1) * 2 + 1 / (1 + 0.5) * 1) / 2
    assert step([2.0, 4.0], [2.0, 1.0], [3, 5]) == pytest.approx(expected + of_biased([2.0, 4.0]), rel=1e-5)
    # seen again: 0.7 · 2 + 0.3 · 1 = 1.7 of 4, and 0.7 · 2 + 0.3 · 0.5 = 1.55, now the largest
    weight = (1.7 / 4) / (1.7 / 4 + 1.55 / 1.55)
    assert step([1.0], [0.5], [3]) == pytest.approx(weight * 0.5 + of_biased([1.0]), rel=1e-5)


def test_afr_weights_and_a_solution_that_no_step_improves():
    logits, labels = logits_with([0.1, 1.0, 2.0]), torch.tensor([0, 0, 0])
    right = [math.exp(-loss) for loss in (0.1, 1.0, 2.0)]
    expected = np.array([math.exp(-3 * p) / 3 for p in right])
    assert afr.weights_of(logits, labels, 3.0).tolist() == pytest.approx(expected / expected.sum())

    features, labels = torch.randn(50, 4, dtype=torch.float64), torch.arange(50) % 3
    weight, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    found = [p.requires_grad_() for p in afr.reweighted_head(features, labels, weight, bias, gamma=2.0, penalty=0.05)]
    weights = afr.weights_of(features @ weight.T + bias, labels, 2.0)
    losses = F.cross_entropy(features @ found[0].T + found[1], labels, reduction="none")
    distance = (found[0] - weight).square().sum() + (found[1] - bias).square().sum()
    for gradient in torch.autograd.grad(weights @ losses + 0.05 * distance, found):
        assert gradient.abs().max() < 1e-4
    far = afr.reweighted_head(features, labels, weight, bias, gamma=2.0, penalty=1e6)
    torch.testing.assert_close(far[0], weight, rtol=0, atol=1e-4)


def test_afr_leans_the_last_layer_off_the_shortcut():
    features, labels, _ = features_with_a_shortcut(train=True)
    tested, test_labels, test_groups = features_with_a_shortcut(train=False)
    weight = torch.tensor([[0.0, -3.0], [0.0, 3.0]], dtype=torch.float64)  # decides by the shortcut alone
    new = afr.reweighted_head(*map(torch.tensor, (features, labels)), weight, torch.zeros(2), gamma=1.44, penalty=1e-3)
    plain = worst_group(tested, test_labels, test_groups, weight.numpy(), np.zeros(2))
    assert plain < 0.1 and worst_group(tested, test_labels, test_groups, *(p.numpy() for p in new)) > 0.6


def test_dfr_finds_the_class_where_groups_are_balanced():
    validation, test = features_with_a_shortcut(train=True), features_with_a_shortcut(train=False)
    scale = np.array([3.0, 0.1])  # the head must undo its own scaling
    weight, bias = dfr.reweighted_head(validation[0] * scale + 5, *validation[1:], num_classes=2, subsets=5, seed=0)
    assert worst_group(test[0] * scale + 5, *test[1:], weight, bias) > 0.85


def test_dfr_with_three_classes():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = rng.normal(size=(90, 3)) * 0.3 + np.eye(3)[labels]
    weight, bias = dfr.reweighted_head(features, labels, labels, num_classes=3, subsets=3, seed=0)
    assert weight.shape == (3, 3) and ((features @ weight.T + bias).argmax(axis=1) == labels).mean() > 0.9


def test_dfr_refuses_a_group_of_one():
    with pytest.raises(UleError, match="group 1 has one image"):
        dfr.reweighted_head(np.zeros((5, 2)), np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 0, 1]), 2, 3, seed=0)


def features_with_a_shortcut(train: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column 0 tells the class under noise, column 1 is the shortcut: right in 90 % of ``train``, else in half."""
    rng = np.random.default_rng(int(train))
    labels = np.arange(400) % 2
    shortcuts = np.where(rng.random(400) < (0.9 if train else 0.5), labels, 1 - labels)
    features = np.stack([2 * labels - 1 + 0.6 * rng.normal(size=400), 2 * shortcuts - 1.0], axis=1)
    return features, labels, 2 * labels + shortcuts


def worst_group(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> float:
    right = (features @ weight.T + bias).argmax(axis=1) == labels
    return min(right[groups == g].mean() for g in np.unique(groups))


def test_eiil_s_environments_have_the_largest_penalty_of_all():
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.normal(size=(9, 3)), rng.integers(0, 3, 9)

    scale = torch.ones(9, dtype=torch.float64, requires_grad=True)
    losses = F.cross_entropy(torch.tensor(logits) * scale[:, None], torch.tensor(labels), reduction="none")
    derivatives = torch.autograd.grad(losses.sum(), scale)[0].numpy()
    np.testing.assert_allclose(eiil.scale_derivatives(logits, labels), derivatives)

    def penalty(environments: np.ndarray) -> float:
        return sum(derivatives[environments == e].sum() ** 2 for e in (0, 1))

    largest = max(penalty(np.array(each)) for each in product((0, 1), repeat=9))
    assert penalty(eiil.infer_environments(logits, labels)) == pytest.approx(largest)


def test_the_sampler_draws_by_weight_and_by_seed_and_epoch():
    groups = np.repeat([0, 1, 3], [3000, 900, 100])
    sampler = WeightedSampler(balancing_weights(groups), seed=0)
    first = list(sampler)
    assert np.bincount(groups[first], minlength=4) / 4000 == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.03)
    assert list(sampler) == first and list(WeightedSampler(balancing_weights(groups), seed=1)) != first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert set(WeightedSampler([0.0, 1.0, 0.0], seed=0)) == {1}


def test_jtt_draws_an_error_as_much_more_often():
    logits = np.tile([1.0, 0.0], (2000, 1))
    labels = (np.arange(2000) % 10 == 0).astype(int)  # 200 errors
    drawn = list(WeightedSampler(upweighted_errors(logits, labels, upweight=9), seed=0))
    assert labels[drawn].mean() == pytest.approx(9 * 200 / (9 * 200 + 1800), abs=0.04)


def test_the_head_makes_logits_of_its_inputs(tmp_path):
    trainer = trainer_of(ClassifierTrainer, tmp_path)
    pictures = Pictures(8, size=8)
    head = linear_head(trainer.model)
    made = torch.from_numpy(head_inputs(trainer, pictures)) @ head.weight.T + head.bias
    with torch.no_grad():
        torch.testing.assert_close(made, trainer.model.eval()(pictures.images).logits, rtol=1e-4, atol=1e-5)


def test_a_model_with_two_heads_is_refused():
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(UleError, match=r"Linear, Linear.* needs one linear layer"):
        linear_head(DeiTForImageClassificationWithTeacher(DeiTConfig(image_size=8, patch_size=4, **size)))
