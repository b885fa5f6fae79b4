"""`ULETrainer`: transformers' `Trainer` for a student and a teacher.

What is overridden, and why, stands in one line at each method; the mathematics is in :mod:`ule_hf.pair`, folders
and pushes in :mod:`ule_hf.publishing`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, EvalPrediction, TrainerCallback
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperPreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from ule_hf.backbones import is_convolutional
from ule_hf.card import CardFacts
from ule_hf.config import ULEConfig
from ule_hf.data.transforms import collate
from ule_hf.errors import UleError
from ule_hf.metrics import classification_metrics, group_sizes
from ule_hf.pair import StudentTeacher, StudentTeacherOutput, twice_differentiable_attention
from ule_hf.publishing import PublishingTrainer, initial_weights
from ule_hf.seeds import named_generator
from ule_hf.step_cost import measure_step_cost

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

# how PyTorch says it: for its own kernels, for custom functions, for compiled modules
NO_SECOND_DERIVATIVE = ("is not implemented", "differentiate twice", "double backward")
LOGGED_MEANS = (
    *("student_loss", "teacher_loss", "unlearning_loss", "overlap"),
    *("student_accuracy", "teacher_accuracy", "student_grad_norm", "teacher_grad_norm"),
    "unlearning_weight",
)
LOGGED_COUNTS = ("batches_of_one_class", "dead_maps")  # since the start; shown once there are any


class ULETrainer(PublishingTrainer):
    """Trains a :class:`ule_hf.pair.StudentTeacher`; what it saves and pushes is the teacher.

    Args:
        model: the pair. Built with ``variant=args.variant()``.
        args: a :class:`ule_hf.config.ULEConfig`.
        train_dataset, eval_dataset: rows that transform to ``pixel_values``, ``labels`` and, where the data has
            groups, ``group`` (see :mod:`ule_hf.data.transforms`).
        processing_class: the image processor, saved beside the weights.
        train_group_sizes: samples of each group in training, ``[number of groups]``; by default counted in the
            ``group`` column of ``train_dataset``.
        card: what the model card says of data, licence and origin.

    A checkpoint is an ordinary model folder of the teacher with the student in ``student/`` below it, and resumes both.

    Raises:
        UleError: labels or groups outside their range, options that exclude one another, a loss or gradient that is
            not finite (the last good checkpoint is named).
    """

    # our loss is a mean over the batch; None would make the Trainer guess from the forward's signature
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: StudentTeacher,
        args: ULEConfig,
        data_collator: Callable | None = collate,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: BaseImageProcessor | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        train_group_sizes: list[int] | None = None,
        card: CardFacts | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, StudentTeacher):
            raise UleError(
                f"ULETrainer trains a StudentTeacher, not a {type(model).__name__}; wrap the two models first"
            )
        if processing_class is None:
            raise UleError("processing_class is missing; give the image processor, which is saved beside the weights")
        libraries = [isinstance(m, TimmWrapperPreTrainedModel) for m in (model.student, model.teacher)]
        if libraries[0] != libraries[1]:
            raise UleError(
                "one of student and teacher is timm's and the other transformers'; take both of one library, because "
                "the student's folder keeps the image processor that made its input"
            )
        self.num_classes = model.teacher.config.num_labels
        eval_datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        for name, dataset in {"train_dataset": train_dataset, **eval_datasets}.items():
            _check_labels(name, dataset, self.num_classes)
        if train_group_sizes is None and all(_has_groups(dataset) for dataset in eval_datasets.values()):
            train_group_sizes = _group_sizes(train_dataset)
        self.train_group_sizes = train_group_sizes
        self.channels_last = is_convolutional(model) if args.channels_last is None else args.channels_last
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        card = card or CardFacts()
        self.card = replace(card, initial_weights=card.initial_weights or initial_weights(model.teacher))

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
        self._since_log = {name: torch.zeros(2, device=self.args.device) for name in LOGGED_MEANS}
        self._counts = {name: torch.zeros((), device=self.args.device) for name in LOGGED_COUNTS}
        self._micro_step = (-1, 0)
        self._step_cost_reported = not args.report_step_cost
        self.add_callback(_EpochOfAugmentation())

    # ---- one step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Everything happens in one call of the (wrapped) pair: DDP and autocast see no other entrance."""
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        if self.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        if not model.training:
            output = model(pixel_values, labels)
            # only these keys become predictions
            shown = {"loss": output.loss, "logits": output.logits, "student_logits": output.student_logits}
            return (output.loss, shown) if return_outputs else output.loss
        output = model(
            pixel_values,
            labels,
            unlearning_weight=self.current_unlearning_weight(),
            train_teacher=self._teacher_has_joined(),
            generator=self._path_generator(),
        )
        self._require_finite(output)
        self._record(output, labels)
        return (output.loss, output) if return_outputs else output.loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Says what to set where a layer has no second derivative; reports the cost of a step once."""
        if not self._step_cost_reported:
            self._step_cost_reported = True
            prepared = self._prepare_inputs(dict(inputs))
            cost = measure_step_cost(self.model, prepared["pixel_values"], prepared["labels"], self.args)
            self.log(cost)
        # checkpointed activations are recomputed in the backward pass, outside the pair's own context
        recomputing = self.args.gradient_checkpointing  # newer: activation_checkpointing, kept equal
        try:
            with twice_differentiable_attention() if recomputing else nullcontext():
                return super().training_step(model, inputs, num_items_in_batch)
        except RuntimeError as error:
            if any(sign in str(error) for sign in NO_SECOND_DERIVATIVE):
                raise UleError(
                    f"a layer of the teacher has no second derivative ({str(error).splitlines()[0]}); load it with "
                    "attn_implementation='sdpa' or 'eager', without flash attention and uncompiled"
                ) from error
            raise

    def _teacher_has_joined(self) -> bool:
        return (self.state.epoch or 0.0) >= self.args.student_head_start

    def current_unlearning_weight(self) -> float:
        """λ at this step: 0 during the head start, then rising over ``unlearning_warmup`` epochs."""
        since_joining = (self.state.epoch or 0.0) - self.args.student_head_start
        if since_joining < 0:
            return 0.0
        if since_joining >= self.args.unlearning_warmup:
            return self.args.unlearning_weight
        return self.args.unlearning_weight * since_joining / self.args.unlearning_warmup

    def _path_generator(self) -> torch.Generator:
        """Partners and points are a function of seed, step, micro-batch and rank: nothing to save, nothing shifted."""
        step, micro = self._micro_step
        self._micro_step = (step, micro + 1) if step == self.state.global_step else (self.state.global_step, 0)
        return named_generator(self.args.seed, "path", *self._micro_step, self.args.process_index)

    def _require_finite(self, output: StudentTeacherOutput) -> None:
        if torch.isfinite(output.loss):
            return
        names = ("student_loss", "teacher_loss", "unlearning_loss")
        losses = ", ".join(f"{n} {getattr(output, n).item():.4g}" for n in names if getattr(output, n) is not None)
        raise UleError(f"the loss is not finite at step {self.state.global_step + 1} ({losses}); {self._way_back()}")

    def _way_back(self) -> str:
        last = get_last_checkpoint(self.args.output_dir) if os.path.isdir(self.args.output_dir) else None
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been written"
        return f"{kept}; try a lower learning_rate or unlearning_weight, or max_grad_norm 1.0"

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Student and teacher are clipped apart: the Trainer's joint norm would let one shrink the other's step."""
        return self._clip_each(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        """As above, without clipping where ``max_grad_norm`` is 0. The teacher's norm is the one that is logged."""
        return self._clip_each(float("inf")) if grad_norm is None else grad_norm

    def _clip_each(self, max_norm: float) -> Tensor:
        norms = {}
        for name in ("student", "teacher"):
            parameters = getattr(self.accelerator.unwrap_model(self.model), name).parameters()
            norms[name] = self.accelerator.clip_grad_norm_(parameters, max_norm)
            if not np.isfinite(float(norms[name])):
                raise UleError(
                    f"the {name}'s gradient is not finite at step {self.state.global_step + 1}; {self._way_back()}"
                )
            self._add(f"{name}_grad_norm", norms[name])
        return norms["teacher"]

    # ---- optimiser ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Own learning rate and weight decay for the student; the teacher's group first, whose rate is logged."""
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = self._parameter_groups("teacher", self.args.learning_rate, self.args.weight_decay)
            groups += self._parameter_groups(
                "student",
                _first_given(self.args.student_learning_rate, self.args.learning_rate),
                _first_given(self.args.student_weight_decay, self.args.weight_decay),
            )
            self.optimizer = optimizer_class(groups, **kwargs)
        return super().create_optimizer(model)

    def _parameter_groups(self, name: str, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        parameters = [(n, p) for n, p in getattr(self.model, name).named_parameters() if p.requires_grad]
        decayed = [p for n, p in parameters if p.ndim > 1 and not n.endswith(UNDECAYED_SUFFIXES)]
        undecayed = [p for n, p in parameters if p.ndim <= 1 or n.endswith(UNDECAYED_SUFFIXES)]
        return [
            {"params": decayed, "lr": learning_rate, "weight_decay": weight_decay},
            {"params": undecayed, "lr": learning_rate, "weight_decay": 0.0},
        ]

    # ---- log and metrics ----

    def _record(self, output: StudentTeacherOutput, labels: Tensor) -> None:
        self._add("unlearning_weight", self.current_unlearning_weight())
        for name in ("student_loss", "teacher_loss", "unlearning_loss", "overlap"):
            if getattr(output, name) is not None:
                self._add(name, getattr(output, name))
        for name, logits in (("student", output.student_logits), ("teacher", output.logits)):
            if logits is not None:
                self._add(f"{name}_accuracy", (logits.argmax(dim=1) == labels).float().mean())
        if output.dead_maps is not None:
            self._counts["dead_maps"] += output.dead_maps
        elif self.current_unlearning_weight() > 0:
            self._counts["batches_of_one_class"] += 1

    def _add(self, name: str, value: Tensor | float) -> None:
        self._since_log[name][0] += value.detach() if isinstance(value, Tensor) else value
        self._since_log[name][1] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss, accuracy and norm since the last log line, over all processes."""
        if "loss" in logs:
            # every process reduces the same names, whichever of them its own batches have seen
            totals = self.accelerator.reduce(torch.stack(list(self._since_log.values())), reduction="sum").tolist()
            logs |= {name: total / n for name, (total, n) in zip(self._since_log, totals, strict=True) if n}
            counts = self.accelerator.reduce(torch.stack(list(self._counts.values())), reduction="sum").tolist()
            logs |= {name: int(count) for name, count in zip(self._counts, counts, strict=True) if count}
            for total in self._since_log.values():
                total.zero_()
        super().log(logs, start_time)

    def compute_group_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Default ``compute_metrics``: :func:`ule_hf.metrics.classification_metrics` of teacher and student.

        The teacher's figures bear their plain names, the student's begin with ``student_``.
        """
        teacher, student = (np.argmax(logits, axis=1) for logits in prediction.predictions)
        labels, groups = prediction.label_ids if self.train_group_sizes else (prediction.label_ids, None)
        metrics = classification_metrics(teacher, labels, self.num_classes, groups, self.train_group_sizes)
        of_student = classification_metrics(student, labels, self.num_classes, groups, self.train_group_sizes)
        return metrics | {f"student_{name}": value for name, value in of_student.items()}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The Trainer's estimate counts pixels as tokens; no figure is better than that one."""
        return 0

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Not before the teacher has been trained; and of equally good epochs the last, because validation may be at
        its best already while the term still works."""
        if self.state.epoch <= self.args.student_head_start:
            return False
        if (
            metrics.get(f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}")
            == self.state.best_metric
        ):
            self.state.best_metric = None
        return super()._determine_best_metric(metrics, trial)


class _EpochOfAugmentation(TrainerCallback):
    """Tells the training transform which epoch it is: augmentation is a function of seed, epoch and image."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        format_kwargs = getattr(train_dataloader.dataset, "format", {}).get("format_kwargs", {})
        set_epoch = getattr(format_kwargs.get("transform"), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(int((state.epoch or 0.0) + 1e-6))


def _first_given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _group_sizes(dataset: Any) -> list[int] | None:
    """Samples per group of a `datasets.Dataset` with a ``group`` ClassLabel; None where there is none."""
    if not _has_groups(dataset):
        return None
    groups = np.asarray(dataset.with_format(None)["group"])
    return group_sizes(groups, dataset.features["group"].num_classes).tolist()


def _has_groups(dataset: Any) -> bool:
    return "group" in getattr(dataset, "features", {})


def _check_labels(name: str, dataset: Any, num_classes: int) -> None:
    if "label" not in getattr(dataset, "features", {}):
        return
    labels = np.asarray(dataset.with_format(None)["label"])
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UleError(
            f"labels of {name} run from {labels.min()} to {labels.max()}, but the teacher has {num_classes} classes "
            f"(0 to {num_classes - 1}); load it with that many, or mend the labels"
        )
