"""`ULETrainer`: transformers' `Trainer` for a student and a teacher.

What is overridden, and why, stands in one line at each method; the mathematics is in :mod:`ule_hf.pair`, folders
and pushes in :mod:`ule_hf.publishing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperPreTrainedModel

from ule_hf.balancing import tally
from ule_hf.classifier_trainer import ClassifierTrainer, decayed_apart
from ule_hf.config import ULEConfig
from ule_hf.errors import UleError
from ule_hf.hub import STUDENT_FOLDER
from ule_hf.pair import StudentTeacher, StudentTeacherOutput, twice_differentiable_attention
from ule_hf.seeds import named_generator
from ule_hf.step_cost import measure_step_cost
from ule_hf.watch import StudentLearns

# how PyTorch says it: for its own kernels, for custom functions, for compiled modules
NO_SECOND_DERIVATIVE = ("is not implemented", "differentiate twice", "double backward")
# of the teacher's training: when the two are watched for `trial_accuracy`
STUDENT_IS_ASKED, TEACHER_IS_ASKED = (0, 1 / 12), (1 / 4, 1 / 3)
TERM_MEANS = ("unlearning_loss", "overlap", "exchanged_share", "exchanged_accuracy", "student_turned")
LOGGED_MEANS = (
    *("student_loss", "teacher_loss", *TERM_MEANS),
    *("student_accuracy", "teacher_accuracy", "student_grad_norm", "teacher_grad_norm"),
    "unlearning_weight",
)


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
    logged_counts = ("batches_of_one_class", "dead_maps")
    remedy = "a lower learning_rate or unlearning_weight, or max_grad_norm 1.0"

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
        self._student_learns = StudentLearns(self, self.num_classes)
        self.add_callback(self._student_learns)
        #: Epoch at which the student had reached ``head_start_accuracy``; infinite before.
        self.student_learned_at = torch.tensor(torch.inf, dtype=torch.float64)
        # what the student got right of its last four batches, and of how many images, by class
        self._of_last_batches = torch.zeros(4, 2, self.num_classes, device=self.args.device)
        # of exchanged images: how many the student took for their partner's class, of how many; how many the teacher
        # told from it, of how many; it is asked for at every step, so it does not lie on a GPU
        self._of_trial = torch.zeros(2, 2)
        self._balance = torch.zeros(2, self.num_classes, 2, device=self.args.device)
        if args.head_start_accuracy is not None or args.trial_accuracy is not None:
            self.kept_tensors = ("student_learned_at", "_of_last_batches", "_of_trial", "_balance")
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
            train_student=not (self.args.freeze_student and self._teacher_has_joined()) or self.is_balancing(),
            unlearning_fraction=self.args.unlearning_fraction,
            balance=self._balance if self.is_balancing() else None,
            ask_student=self._is_asked(STUDENT_IS_ASKED),
            generator=self._path_generator(),
        )
        self._watch(output, labels)
        loss = self.require_finite(output.loss, partial(_losses, output))
        if loss is output.loss:
            self._record(output, labels)
        return (loss, output) if return_outputs else loss

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

    @property
    def head_start_ends(self) -> float:
        """Epoch at which the teacher joins. What a student learns first is the shortcut, what it learns later may be
        the task; of the shortcut it is not sure when it has just learned it, so it trains for as long again."""
        return min(self.args.student_head_start, 2 * self.student_learned_at.item())

    def _teacher_has_joined(self) -> bool:
        return (self.state.epoch or 0.0) >= self.head_start_ends

    def _watch(self, output: StudentTeacherOutput, labels: Tensor) -> None:
        """What decides how training goes on, counted over all processes: the same on each."""
        if not self._teacher_has_joined():
            if self.student_learned_at.isinf() and self._has_learned(output.student_logits, labels):
                # a little later than this step: it counts from the next one on
                self.student_learned_at.fill_((self.state.epoch or 0.0) + 1e-6)
        elif output.tally is not None:
            # a step that is skipped, because it is not finite, must not stay in the sums
            of_batch = torch.where(output.tally.isfinite().all(), output.tally, 0.0)
            self._balance += self.accelerator.reduce(of_batch, reduction="sum")
        elif self._is_asked(STUDENT_IS_ASKED):
            self._count_answers(0, output.student_turned, len(labels))
        elif self._is_asked(TEACHER_IS_ASKED):
            self._count_answers(1, output.exchanged_accuracy, len(labels))

    def _has_learned(self, logits: Tensor, labels: Tensor) -> bool:
        """Whether the student is right on enough of its last four batches, mean over the classes."""
        if self.args.head_start_accuracy is None:
            return False
        of_batch = tally(logits, labels)[0]
        of_batch = self.accelerator.reduce(torch.stack([of_batch[:, 1], of_batch.sum(dim=1)]), reduction="sum")
        self._of_last_batches = torch.cat([self._of_last_batches[1:], of_batch[None]])
        right, seen = self._of_last_batches.sum(dim=0)
        four = bool((self._of_last_batches[:, 1].sum(dim=1) > 0).all())
        return four and bool((right[seen > 0] / seen[seen > 0]).mean() >= self.args.head_start_accuracy)

    def _epochs_of_teacher(self) -> float:
        """How many the teacher trains, once it has joined."""
        return self.state.epoch * self.state.max_steps / self.state.global_step - self.head_start_ends

    def _progress(self) -> float:
        """How much of the teacher's training is over, from 0 to 1."""
        if not self._teacher_has_joined() or not self.state.epoch:
            return 0.0
        return (self.state.epoch - self.head_start_ends) / self._epochs_of_teacher()

    def _is_asked(self, when: tuple[float, float]) -> bool:
        """The frozen student at once. The teacher late: at first it knows the shortcut only, and fails in any case."""
        on_trial = self.args.trial_accuracy is not None and self._teacher_has_joined()
        return on_trial and when[0] <= self._progress() < when[1]

    def _count_answers(self, question: int, share: Tensor | None, images: int) -> None:
        """Of one batch; the same on every process."""
        of_batch = torch.zeros(2, device=self.args.device)
        if share is not None:
            of_batch += images * torch.stack([share, torch.ones_like(share)])
        self._of_trial[question] += self.accelerator.reduce(of_batch, reduction="sum").cpu()

    def trial(self) -> dict[str, float]:
        """What the trial has found so far: the share of exchanged images that the student took for the partner's class
        (what it decides by has gone) and the share that the teacher did not (what they are is still to be seen)."""
        answers = zip(("student_turned", "exchanged_accuracy"), self._of_trial.tolist(), strict=True)
        return {name: counted / images for name, (counted, images) in answers if images}

    def _was_too_low(self, name: str, when: tuple[float, float]) -> bool:
        return self._progress() >= when[1] and self.trial().get(name, 1.0) < (self.args.trial_accuracy or 0.0)

    def shortcut_has_no_place(self) -> bool:
        """Whether the student decides by something that cannot be exchanged cell by cell, such as a background."""
        return self._was_too_low("student_turned", STUDENT_IS_ASKED)

    def exchange_has_failed(self) -> bool:
        """Whether one of the two shares was too low."""
        return self.shortcut_has_no_place() or self._was_too_low("exchanged_accuracy", TEACHER_IS_ASKED)

    def is_balancing(self) -> bool:
        """Whether the student's errors weigh as much as what it gets right: where its shortcut has no place, if it had
        learned in its first epoch. Then it was right about images that it had never seen; later it may know them by
        heart, and its errors are hard images rather than images that contradict a shortcut."""
        return bool(self.args.balance_errors) and self.student_learned_at.item() <= 1 and self.shortcut_has_no_place()

    def current_unlearning_weight(self) -> float:
        """λ at this step: 0 during the head start, then rising over ``unlearning_warmup`` epochs; falling linearly to 0
        with ``unlearning_decay``, but not while errors are balanced; else 0 once the exchange has failed its trial.

        With ``unlearning_interval`` k it is k · λ at every k-th optimiser step and 0 between (lazy regularisation,
        Karras et al. 2020); which steps those are follows from the number of the step alone.
        """
        since_joining = (self.state.epoch or 0.0) - self.head_start_ends
        if since_joining < 0 or self.state.global_step % self.args.unlearning_interval:
            return 0.0
        balancing = self.is_balancing()
        if self.exchange_has_failed() and not balancing:
            return 0.0
        weight = self.args.unlearning_weight * self.args.unlearning_interval
        if self.args.unlearning_decay and not balancing:
            weight *= 1 - self._progress()
        if since_joining >= self.args.unlearning_warmup:
            return weight
        return weight * since_joining / self.args.unlearning_warmup

    def _path_generator(self) -> torch.Generator:
        """Partners and points are a function of seed, step, micro-batch and rank: nothing to save, nothing shifted."""
        step, micro = self._micro_step
        self._micro_step = (step, micro + 1) if step == self.state.global_step else (self.state.global_step, 0)
        return named_generator(self.args.seed, "path", *self._micro_step, self.args.process_index)

    def clipped_apart(self) -> Mapping[str, nn.Module]:
        """Student and teacher: one must not shrink the other's step. The teacher's norm is the one that is logged."""
        return {"student": self.model.student, "teacher": self.model.teacher}

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        """As :meth:`WatchedTrainer.clip`; the norms are logged."""
        norms = super().clip(max_norm)
        for name, norm in norms.items():
            if not self._skipped_in_a_row:
                self._add(f"{name}_grad_norm", norm)
        return norms

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
        for name in ("student_loss", "teacher_loss", *TERM_MEANS):
            if getattr(output, name) is not None:
                self._add(name, getattr(output, name))
        for name, logits in (("student", output.student_logits), ("teacher", output.logits)):
            if logits is not None:
                self._add(f"{name}_accuracy", (logits.argmax(dim=1) == labels).float().mean())
        if self.current_unlearning_weight() > 0:
            self._student_learns.add(output.student_logits.argmax(dim=1), labels)
        if output.dead_maps is not None:
            self._counts["dead_maps"] += output.dead_maps
        elif output.unlearning_loss is None and self.current_unlearning_weight() > 0:
            self._counts["batches_of_one_class"] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the others', which add means and totals; says once in words what a dead map is."""
        super().log(logs, start_time)
        if logs.get("dead_maps"):
            self.warn_once(
                "%d saliency maps were zero everywhere by epoch %.3g (the score does not depend on the image, or all "
                "its units are off): they are left at zero, not divided by, and teach nothing; the log counts them",
                *(logs["dead_maps"], logs["epoch"]),
            )

    def compute_group_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Default ``compute_metrics``: :func:`ule_hf.metrics.classification_metrics` of teacher and student.

        The teacher's figures bear their plain names, the student's begin with ``student_``.
        """
        self._warn_of_one_answer(prediction.predictions[0])
        of_teacher, of_student = (self._metrics_of(logits, prediction) for logits in prediction.predictions)
        return of_teacher | {f"student_{name}": value for name, value in of_student.items()}

    def _warn_of_one_answer(self, logits: np.ndarray) -> None:
        answers = np.unique(np.argmax(logits, axis=1))
        if len(answers) == 1 and len(logits) > 1 and (self.state.epoch or 0.0) > self.head_start_ends:
            self.warn_once(
                "the teacher has collapsed: at epoch %.3g it answers %s to each of %d images, so its saliency map, and "
                "the unlearning term, means nothing (a lower unlearning_weight or learning_rate?)",
                *(self.state.epoch, self.model.teacher.config.id2label[int(answers[0])], len(logits)),
            )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Not before the teacher has been trained."""
        return self.state.epoch > self.head_start_ends and super()._determine_best_metric(metrics, trial)


def _losses(output: StudentTeacherOutput) -> tuple[str, str]:
    """What of them is not finite, and all of them."""
    losses = {name: getattr(output, name) for name in ("student_loss", "teacher_loss", "unlearning_loss")}
    losses = {name: loss.item() for name, loss in losses.items() if loss is not None}
    wrong = [name for name, loss in losses.items() if not np.isfinite(loss)]
    what = "a saliency map" if wrong == ["unlearning_loss"] else "the loss"
    return what, ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())


def _first_given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
