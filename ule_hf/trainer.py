"""`ULETrainer`: transformers' `Trainer` for a student and a teacher.

What is overridden, and why, stands in one line at each method; the mathematics is in :mod:`ule_hf.pair`, folders
and pushes in :mod:`ule_hf.publishing`.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperPreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from ule_hf.classifier_trainer import ClassifierTrainer, decayed_apart
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError
from ule_hf.hub import STUDENT_FOLDER
from ule_hf.pair import StudentTeacher, StudentTeacherOutput, twice_differentiable_attention
from ule_hf.seeds import named_generator
from ule_hf.step_cost import measure_step_cost

# how PyTorch says it: for its own kernels, for custom functions, for compiled modules
NO_SECOND_DERIVATIVE = ("is not implemented", "differentiate twice", "double backward")
LOGGED_MEANS = (
    *("student_loss", "teacher_loss", "unlearning_loss", "overlap"),
    *("student_accuracy", "teacher_accuracy", "student_grad_norm", "teacher_grad_norm"),
    "unlearning_weight",
)
LOGGED_COUNTS = ("batches_of_one_class", "dead_maps")  # since the start; shown once there are any


class ULETrainer(ClassifierTrainer):
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

    logged_means = LOGGED_MEANS

    def __init__(self, model: StudentTeacher, args: ULEConfig, **kwargs: Any) -> None:
        if not isinstance(model, StudentTeacher):
            raise UleError(
                f"ULETrainer trains a StudentTeacher, not a {type(model).__name__}; wrap the two models first"
            )
        libraries = [isinstance(m, TimmWrapperPreTrainedModel) for m in (model.student, model.teacher)]
        if libraries[0] != libraries[1]:
            raise UleError(
                "one of student and teacher is timm's and the other transformers'; take both of one library, because "
                "the student's folder keeps the image processor that made its input"
            )
        super().__init__(model, args, **kwargs)
        self._counts = {name: torch.zeros((), device=self.args.device) for name in LOGGED_COUNTS}
        self._micro_step = (-1, 0)
        self._step_cost_reported = not args.report_step_cost

    @staticmethod
    def folders(model: StudentTeacher) -> dict[str, PreTrainedModel]:
        """The teacher at the root, the student below."""
        return {"": model.teacher, STUDENT_FOLDER: model.student}

    # ---- one step ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Everything happens in one call of the (wrapped) pair: DDP and autocast see no other entrance."""
        pixel_values, labels = self._in_memory_format(inputs["pixel_values"]), inputs["labels"]
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

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Own learning rate and weight decay for the student; the teacher's group first, whose rate is logged."""
        return decayed_apart(self.model.teacher, self.args.learning_rate, self.args.weight_decay) + decayed_apart(
            self.model.student,
            _first_given(self.args.student_learning_rate, self.args.learning_rate),
            _first_given(self.args.student_weight_decay, self.args.weight_decay),
        )

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss, accuracy and norm since the last log line, over all processes."""
        if "loss" in logs:
            counts = self.accelerator.reduce(torch.stack(list(self._counts.values())), reduction="sum").tolist()
            logs |= {name: int(count) for name, count in zip(self._counts, counts, strict=True) if count}
        super().log(logs, start_time)

    def compute_group_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Default ``compute_metrics``: :func:`ule_hf.metrics.classification_metrics` of teacher and student.

        The teacher's figures bear their plain names, the student's begin with ``student_``.
        """
        of_teacher, of_student = (self._metrics_of(logits, prediction) for logits in prediction.predictions)
        return of_teacher | {f"student_{name}": value for name, value in of_student.items()}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Not before the teacher has been trained."""
        return self.state.epoch > self.args.student_head_start and super()._determine_best_metric(metrics, trial)


def _first_given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
