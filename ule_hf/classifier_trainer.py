"""`ClassifierTrainer`: transformers' `Trainer` for an image classifier whose groups are measured.

Alone it trains plainly (empirical risk minimisation); :class:`ule_hf.trainer.ULETrainer` and the methods of
:mod:`ule_hf.baselines` change the loss or the sampling and share the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BaseImageProcessor, EvalPrediction, TrainerCallback

from ule_hf.backbones import is_convolutional
from ule_hf.card import CardFacts
from ule_hf.config import ULEConfig
from ule_hf.data.transforms import collate
from ule_hf.errors import UleError
from ule_hf.metrics import classification_metrics, group_sizes
from ule_hf.publishing import PublishingTrainer, initial_weights

# Neither norms and biases (one dimension) nor tokens and position tables are decayed; transformers' own rule decays
# BatchNorm's weights and a ViT's position table.
UNDECAYED_SUFFIXES = (
    "cls_token",
    "dist_token",
    "reg_token",
    "mask_token",
    "pos_embed",
    "position_embeddings",
    "bias_table",
)
KEPT_TENSORS_FILE = "kept.safetensors"


class ClassifierTrainer(PublishingTrainer):
    """Minimises the mean cross-entropy over the training data.

    Args:
        model: an image classifier from :func:`ule_hf.backbones.load_backbone`.
        args: a :class:`ule_hf.config.ULEConfig`; its options of ULE itself are not looked at.
        train_dataset, eval_dataset: rows that transform to ``pixel_values``, ``labels`` and, where the data has
            groups, ``group`` (see :mod:`ule_hf.data.transforms`).
        processing_class: the image processor, saved beside the weights.
        train_group_sizes: samples of each group in training, ``[number of groups]``; by default counted in the
            ``group`` column of ``train_dataset``.
        card: what the model card says of data, licence and origin.
        train_sampler: draws the training images in the place of random permutations.

    A checkpoint is an ordinary model folder.

    Raises:
        UleError: labels or groups outside their range, or a loss that is not finite (the last good checkpoint is
            named).
    """

    # our loss is a mean over the batch; None would make the Trainer guess from the forward's signature
    loss_is_scaled_for_ga = False
    #: What `log` shows as means since the last line; :meth:`_add` collects them.
    logged_means: tuple[str, ...] = ("train_accuracy",)
    #: Attributes, tensors, that a checkpoint keeps beside weights and optimiser.
    kept_tensors: tuple[str, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        args: ULEConfig,
        data_collator: Callable | None = collate,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: BaseImageProcessor | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        train_group_sizes: list[int] | None = None,
        card: CardFacts | None = None,
        train_sampler: torch.utils.data.Sampler | None = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise UleError("processing_class is missing; give the image processor, which is saved beside the weights")
        shipped = self.folders(model)[""]
        self.num_classes = shipped.config.num_labels
        eval_datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        for name, dataset in {"train_dataset": train_dataset, **eval_datasets}.items():
            _check_labels(name, dataset, self.num_classes)
        if train_group_sizes is None and all(_has_groups(dataset) for dataset in eval_datasets.values()):
            train_group_sizes = _group_sizes(train_dataset)
        self.train_group_sizes = train_group_sizes
        self.train_sampler = train_sampler
        self.channels_last = is_convolutional(model) if args.channels_last is None else args.channels_last
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        card = card or CardFacts()
        self.card = replace(card, initial_weights=card.initial_weights or initial_weights(shipped))

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics or self.compute_group_metrics,
            **kwargs,
        )
        if args.label_names is None:
            self.label_names = ["labels", "group"] if self.train_group_sizes else ["labels"]
        self._since_log = {name: torch.zeros(2, device=self.args.device) for name in self.logged_means}
        self.add_callback(_EpochOfAugmentation())

    # ---- one step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean cross-entropy in evaluation, :meth:`training_loss` in training."""
        labels = inputs["labels"]
        output = model(self._in_memory_format(inputs["pixel_values"]))
        if not model.training:
            loss = F.cross_entropy(output.logits, labels)
            return (loss, {"loss": loss, "logits": output.logits}) if return_outputs else loss
        loss = self.require_finite(self.training_loss(output, inputs))
        self._add("train_accuracy", (output.logits.argmax(dim=1) == labels).float().mean())
        return (loss, output) if return_outputs else loss

    def training_loss(self, output: Any, inputs: dict[str, Any]) -> Tensor:
        """What training minimises: a scalar of ``output.logits`` ``[B, K]`` and ``inputs["labels"]`` ``[B]``."""
        return F.cross_entropy(output.logits, inputs["labels"])

    def _in_memory_format(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.contiguous(memory_format=torch.channels_last) if self.channels_last else pixel_values

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        return super()._get_train_sampler(train_dataset) if self.train_sampler is None else self.train_sampler

    # ---- optimiser ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Decay is for weights alone, see `UNDECAYED_SUFFIXES`."""
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(self.parameter_groups(), **kwargs)
        return super().create_optimizer(model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters with their own learning rate and weight decay; the first group's rate is logged."""
        return decayed_apart(self.model, self.args.learning_rate, self.args.weight_decay)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.kept_tensors and self.args.should_save:
            save_file({name: getattr(self, name) for name in self.kept_tensors}, Path(output_dir) / KEPT_TENSORS_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.kept_tensors and checkpoint is not None:
            path = Path(checkpoint) / KEPT_TENSORS_FILE
            if not path.is_file():
                raise UleError(f"{checkpoint} is no checkpoint of this method: {path} is missing")
            kept = load_file(path)
            if missing := sorted(set(self.kept_tensors) - set(kept)):
                raise UleError(f"{path} holds no {', '.join(missing)}; it was written by another version of ule_hf")
            for name in self.kept_tensors:
                setattr(self, name, kept[name].to(getattr(self, name).device))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """With persistent workers the Trainer would read the first data it evaluated, whatever it is given."""
        if eval_dataset is None or eval_dataset is self.eval_dataset or isinstance(eval_dataset, str):
            return super().get_eval_dataloader(eval_dataset)
        return self.get_test_dataloader(eval_dataset)

    # ---- log and metrics ----

    def _add(self, name: str, value: Tensor | float) -> None:
        self._since_log[name][0] += value.detach() if isinstance(value, Tensor) else value
        self._since_log[name][1] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last log line of what :meth:`_add` was given, over all processes."""
        if "loss" in logs:
            # every process reduces the same names, whichever of them its own batches have seen
            totals = self.accelerator.reduce(torch.stack(list(self._since_log.values())), reduction="sum").tolist()
            logs |= {name: total / n for name, (total, n) in zip(self._since_log, totals, strict=True) if n}
            for total in self._since_log.values():
                total.zero_()
        super().log(logs, start_time)

    def compute_group_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Default ``compute_metrics``: :func:`ule_hf.metrics.classification_metrics`."""
        return self._metrics_of(prediction.predictions, prediction)

    def _metrics_of(self, logits: np.ndarray, prediction: EvalPrediction) -> dict[str, float]:
        labels, groups = prediction.label_ids if self.train_group_sizes else (prediction.label_ids, None)
        return classification_metrics(
            np.argmax(logits, axis=1), labels, self.num_classes, groups, self.train_group_sizes
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The Trainer's estimate counts pixels as tokens; no figure is better than that one."""
        return 0

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Of equally good epochs the last, because validation may be at its best already while training still mends
        what validation does not show."""
        if (
            metrics.get(f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}")
            == self.state.best_metric
        ):
            self.state.best_metric = None
        return super()._determine_best_metric(metrics, trial)


def decayed_apart(module: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters of ``module`` as two groups of an optimiser: those that decay, and the others."""
    groups: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim <= 1 or name.endswith(UNDECAYED_SUFFIXES)].append(parameter)
    decays = (weight_decay, 0.0)
    return [
        {"params": group, "lr": learning_rate, "weight_decay": decay}
        for group, decay in zip(groups, decays, strict=True)
    ]


def column(dataset: Any, name: str) -> np.ndarray:
    """A column of ids of a `datasets.Dataset`, ``[N]``, untouched by its transform."""
    return np.asarray(dataset.with_format(None)[name])


class _EpochOfAugmentation(TrainerCallback):
    """Tells the training transform which epoch it is: augmentation is a function of seed, epoch and image."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        format_kwargs = getattr(train_dataloader.dataset, "format", {}).get("format_kwargs", {})
        set_epoch = getattr(format_kwargs.get("transform"), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(int((state.epoch or 0.0) + 1e-6))


def _group_sizes(dataset: Any) -> list[int] | None:
    """Samples per group of a `datasets.Dataset` with a ``group`` ClassLabel; None where there is none."""
    if not _has_groups(dataset):
        return None
    return group_sizes(column(dataset, "group"), dataset.features["group"].num_classes).tolist()


def _has_groups(dataset: Any) -> bool:
    return "group" in getattr(dataset, "features", {})


def _check_labels(name: str, dataset: Any, num_classes: int) -> None:
    if "label" not in getattr(dataset, "features", {}):
        return
    labels = column(dataset, "label")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UleError(
            f"labels of {name} run from {labels.min()} to {labels.max()}, but the teacher has {num_classes} classes "
            f"(0 to {num_classes - 1}); load it with that many, or mend the labels"
        )
