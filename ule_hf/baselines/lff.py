"""LfF: learning from failure.

Two models on the same batches, as in ULE. The biased one minimises the generalised cross-entropy (1 − p_y^q)/q, which
makes it lean on what is easy. The debiased one, which is shipped, minimises 1/B Σ_i W_i ℓ(f_D(x_i), y_i) with the
relative difficulty W = ℓ_B / (ℓ_B + ℓ_D), a constant to the gradient (Nam et al., *Learning from failure: training
debiased classifier from biased classifier*, NeurIPS 2020). In W, as the authors do it, each image's cross-entropies
ℓ_B and ℓ_D are exponential moving averages over the epochs, divided by the largest average of the image's class.

Labels: the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ule_hf.balancing import relative_difficulty
from ule_hf.classifier_trainer import ClassifierTrainer, column
from ule_hf.data.transforms import collate
from ule_hf.pair import generalised_cross_entropy
from ule_hf.task import Task, load_initial

BIASED_FOLDER = "biased"


class BiasedAndDebiased(nn.Module):
    """Both models in one call, because that is what DistributedDataParallel synchronises."""

    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, biased: PreTrainedModel, debiased: PreTrainedModel) -> None:
        super().__init__()
        self.biased = biased
        self.debiased = debiased

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        """``logits`` of the debiased model and, in training, ``biased_logits``, ``[B, K]`` each."""
        biased_logits = self.biased(pixel_values).logits if self.training else None
        return ModelOutput(logits=self.debiased(pixel_values).logits, biased_logits=biased_logits)


class LfFTrainer(ClassifierTrainer):
    """Trains :class:`BiasedAndDebiased`; a checkpoint holds the biased model in ``biased/``.

    Args:
        train_labels: ``[N]``, the class of each training image in the order of ``train_dataset``.
        q: of the generalised cross-entropy.
        decay: of the moving averages.
    """

    logged_means = ("train_accuracy", "biased_accuracy", "mean_weight")
    kept_tensors = ("average_losses", "seen")

    def __init__(
        self,
        model: BiasedAndDebiased,
        args: Any,
        *,
        train_labels: ArrayLike,
        q: float = 0.7,
        decay: float = 0.7,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, data_collator=collate_with_index, **kwargs)
        self.train_dataset = WithIndex(self.train_dataset)
        self.q = q
        self.decay = decay
        self.train_labels = torch.as_tensor(np.asarray(train_labels), device=self.args.device)
        self.average_losses = torch.zeros(2, len(self.train_labels), device=self.args.device)  # biased, debiased
        self.seen = torch.zeros(len(self.train_labels), dtype=torch.bool, device=self.args.device)

    @staticmethod
    def folders(model: BiasedAndDebiased) -> dict[str, PreTrainedModel]:
        """The debiased model at the root, the biased one below."""
        return {"": model.debiased, BIASED_FOLDER: model.biased}

    def training_loss(self, output: Any, inputs: dict[str, Any]) -> Tensor:
        """The sum of both models' losses; neither's gradient sees the other."""
        labels, index = inputs["labels"], inputs["index"]
        biased_logits, logits = output.biased_logits.float(), output.logits.float()
        losses = torch.stack([F.cross_entropy(x, labels, reduction="none") for x in (biased_logits, logits)])
        if losses.isfinite().all():
            self._average(self.accelerator.gather(index), self.accelerator.gather(losses.detach().T.contiguous()).T)
        weights = relative_difficulty(*self._scaled_by_class(index))
        self._add("biased_accuracy", (biased_logits.argmax(dim=1) == labels).float().mean())
        self._add("mean_weight", weights.mean())
        return generalised_cross_entropy(biased_logits, labels, self.q) + (weights * losses[1]).mean()

    def _average(self, index: Tensor, losses: Tensor) -> None:
        """Of every process's images, so that all processes keep the same averages."""
        moved = self.decay * self.average_losses[:, index] + (1 - self.decay) * losses
        self.average_losses[:, index] = torch.where(self.seen[index], moved, losses)
        self.seen[index] = True

    def _scaled_by_class(self, index: Tensor) -> Tensor:
        classes = self.train_labels.expand(2, -1)
        largest = self.average_losses.new_zeros(2, self.num_classes)
        largest.scatter_reduce_(1, classes, self.average_losses, "amax")
        of_class = largest[:, self.train_labels[index]]
        return self.average_losses[:, index] / torch.where(of_class > 0, of_class, 1.0)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Each model apart: with a joint norm one would shrink the other's step."""
        pair = self.folders(self.accelerator.unwrap_model(self.model))
        norms = [self.accelerator.clip_grad_norm_(m.parameters(), self.args.max_grad_norm) for m in pair.values()]
        return norms[0]


class WithIndex(torch.utils.data.Dataset):
    """Rows of ``dataset``, each with its number as ``index``."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.format = getattr(dataset, "format", {})  # where the epoch's number reaches the augmentation

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self.dataset[i], "index": i}


def collate_with_index(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """:func:`ule_hf.data.transforms.collate`, and ``index`` ``[B]`` where the rows have one."""
    index = {"index": torch.tensor([row["index"] for row in rows])} if "index" in rows[0] else {}
    return collate(rows) | index


def train(task: Task) -> LfFTrainer:
    """Train both models, initialised as ULE's student and teacher are."""
    biased, _ = load_initial(task.model_args, task.labels, task.args.seed, "student")
    trainer = task.trainer(
        LfFTrainer,
        BiasedAndDebiased(biased, task.classifier()),
        train_labels=column(task.data["train"], "label"),
        q=task.args.gce_q,
        decay=task.method_args.lff_decay,
    )
    return task.train(trainer)
