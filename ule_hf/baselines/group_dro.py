"""Group DRO: distributionally robust optimisation over groups.

Minimises max_g E[ℓ(f(x), y) | g] by an online game (Sagawa, Koh, Hashimoto, Liang, *Distributionally robust neural
networks for group shifts*, ICLR 2020, algorithm 1): groups are drawn with equal probability; with L_g the mean loss
of the batch's images of group g, first q_g ← q_g exp(η (L_g + C/√n_g)), divided by Σ_g q_g, then a step on Σ_g q_g
L_g. C/√n_g is the paper's group adjustment, n_g the group's size in training; as it does not depend on the weights it
acts through q alone. The paper's gains with large networks need strong regularisation besides, a matter of the
recipe: weight decay, or few epochs.

Labels: class and group in training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from ule_hf.baselines.sampling import WeightedSampler, balancing_weights
from ule_hf.classifier_trainer import ClassifierTrainer, column
from ule_hf.task import Task


def updated_weights(weights: Tensor, group_losses: Tensor, step_size: float) -> Tensor:
    """q_g exp(η L_g) / Σ_h q_h exp(η L_h), ``[G]``.

    >>> updated_weights(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), step_size=torch.log(torch.tensor(3.0)))
    tensor([0.2500, 0.7500])
    """
    return torch.softmax(weights.log() + step_size * group_losses, dim=0)


class GroupDROTrainer(ClassifierTrainer):
    """Steps on Σ_g q_g L_g.

    Args:
        train_sizes: ``[G]`` training images of each id in the training data's ``group``.
        step_size: η.
        adjustment: C.
    """

    kept_tensors = ("group_weights",)

    def __init__(
        self, model: Any, args: Any, *, train_sizes: Tensor, step_size: float, adjustment: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(model, args, **kwargs)
        sizes = torch.as_tensor(train_sizes, dtype=torch.float32, device=self.args.device)
        self.step_size = step_size
        self.present = sizes > 0
        self.adjustment = torch.where(self.present, adjustment / sizes.clamp_min(1).sqrt(), 0.0)
        self.group_weights = self.present / self.present.sum()

    def training_loss(self, output: Any, inputs: dict[str, Any]) -> Tensor:
        """As every process of a distributed run: L_g is of the whole batch, q the same for all."""
        losses = F.cross_entropy(output.logits.float(), inputs["labels"], reduction="none")
        of_group = F.one_hot(inputs["group"], len(self.group_weights)).to(losses.dtype)
        sums, counts = losses @ of_group, of_group.sum(dim=0)
        all_sums, all_counts = self.accelerator.reduce(torch.stack([sums.detach(), counts]), reduction="sum")
        seen = all_counts > 0
        means = torch.where(seen, all_sums / all_counts.clamp_min(1) + self.adjustment, 0.0)
        if means.isfinite().all():  # a batch that is skipped must not spoil what follows
            self.group_weights = updated_weights(self.group_weights, means, self.step_size)
        # gradients are averaged over processes, these are shares of one sum
        shares = sums * self.accelerator.num_processes / all_counts.clamp_min(1)
        return self.group_weights @ shares


def train(task: Task) -> ClassifierTrainer:
    """Train the initial model against the worst group."""
    return train_on_groups(task, task.data["train"])


def train_on_groups(task: Task, train: Dataset) -> ClassifierTrainer:
    """Train the initial model against the worst of the groups in ``train``'s column ``group``, whatever these are."""
    groups = column(train, "group")
    trainer = task.trainer(
        GroupDROTrainer,
        task.classifier(),
        train,
        train_sampler=WeightedSampler(balancing_weights(groups), task.args.seed),
        train_sizes=torch.bincount(torch.as_tensor(groups), minlength=train.features["group"].num_classes),
        step_size=task.method_args.group_dro_step_size,
        adjustment=task.method_args.group_dro_adjustment,
    )
    return task.train(trainer)
