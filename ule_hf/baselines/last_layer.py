"""What methods that train only the last layer share: its inputs, and putting it back."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray
from torch import nn
from transformers import PreTrainedModel

from ule_hf.backbones import head_names
from ule_hf.classifier_trainer import ClassifierTrainer
from ule_hf.errors import UleError
from ule_hf.task import Task


def linear_head(classifier: PreTrainedModel) -> nn.Linear:
    """The layer that makes the logits.

    Raises:
        UleError: logits are made by several layers, or by one that is not linear.
    """
    heads = [classifier.get_submodule(name) for name in head_names(classifier)]
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        kinds = ", ".join(type(head).__name__ for head in heads)
        raise UleError(f"the model's last layer is {kinds}, and this method needs one linear layer; take another model")
    return heads[0]


def head_inputs(trainer: ClassifierTrainer, dataset: Dataset) -> NDArray[np.float32]:
    """What the head of the trainer's model is given for each row of ``dataset``, ``[N, D]``, in evaluation mode."""
    captured: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []
    handle = linear_head(trainer.model).register_forward_pre_hook(lambda head, args: captured.append(args[0]))
    trainer.model.eval()
    try:
        with torch.no_grad():
            for batch in trainer.get_test_dataloader(dataset):
                captured.clear()
                trainer.model(trainer._prepare_inputs(batch)["pixel_values"])
                inputs.append(trainer.accelerator.gather_for_metrics(captured[0]).float().cpu())
    finally:
        handle.remove()
    return torch.cat(inputs).numpy()


def ship(task: Task, first: ClassifierTrainer, weight: ArrayLike, bias: ArrayLike) -> ClassifierTrainer:
    """A trainer of the first stage's model with ``weight`` ``[K, D]`` and ``bias`` ``[K]`` in its head, evaluated."""
    head = linear_head(first.model)
    with torch.no_grad():
        head.weight.copy_(torch.as_tensor(np.asarray(weight)))
        head.bias.copy_(torch.as_tensor(np.asarray(bias)))
    trainer = task.trainer(ClassifierTrainer, first.model)
    trainer.state.epoch = first.args.num_train_epochs  # when it happened
    trainer.evaluate()
    return trainer
