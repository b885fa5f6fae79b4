"""Student and teacher as one module: everything a training step needs happens in one call of its forward.

One call, because that is what DistributedDataParallel synchronises, what autocast covers, and what updates each
BatchNorm's statistics once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from transformers.utils import ModelOutput

from ule_hf.attribution import attribution_map, class_score, draw_path, input_gradient, mix, path_attribution
from ule_hf.errors import UleError
from ule_hf.second_order import fast_double_backward
from ule_hf.unlearning import apply_control, overlap, unlearning_term
from ule_hf.variant import Variant


@dataclass
class StudentTeacherOutput(ModelOutput):
    """What one forward gives.

    ``loss`` is what to call ``backward`` on: student_loss + teacher_loss + unlearning_weight · unlearning_loss.
    ``logits`` (the teacher's, None while it is not trained) and ``student_logits`` are ``[B, K]``. The last three are
    scalars for the log, and None where the step has no term: no weight, evaluation, or a path and one class only.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    student_logits: Tensor | None = None
    student_loss: Tensor | None = None
    teacher_loss: Tensor | None = None
    unlearning_loss: Tensor | None = None
    overlap: Tensor | None = None
    dead_maps: Tensor | None = None


class StudentTeacher(nn.Module):
    """Two image classifiers that look at the same batches; the teacher unlearns what the student leans on.

    Args:
        student, teacher: modules from images ``[B, C, H, W]`` to logits ``[B, K]``, or to an output with ``.logits``
            (transformers). They share nothing but the input and may be of different architectures.
        variant: what a step computes, see :class:`ule_hf.variant.Variant`.

    The student's gradient never sees the teacher's term: its map is detached. The gradients of
    :class:`StudentTeacherOutput`'s ``loss`` are exact, second derivatives included.
    """

    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # the Trainer would otherwise count labels and rescale the loss

    def __init__(self, student: nn.Module, teacher: nn.Module, variant: Variant | None = None) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.variant = variant or Variant()
        self._recomputes_activations = False

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        unlearning_weight: float = 0.0,
        train_teacher: bool = True,
        partners: Tensor | None = None,
        points: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> StudentTeacherOutput:
        """One step's losses (training mode) or both models' logits (evaluation mode).

        Args:
            pixel_values: ``[B, C, H, W]``, normalised.
            labels: ``[B]`` class ids; without them no loss is computed.
            unlearning_weight: λ; at 0 the teacher is trained plainly and no map is computed.
            train_teacher: False while the student has its head start; the teacher is then not called at all.
            partners, points: ``[B]`` each, to fix the paths; drawn with ``generator`` when not given.
        """
        unlearn = self.training and train_teacher and labels is not None and unlearning_weight > 0
        at_images = unlearn and self.variant.attribution == "gradient"
        if at_images:
            pixel_values = pixel_values.detach().requires_grad_()

        student_logits = _logits(self.student, pixel_values)
        teacher_logits = None
        if train_teacher:
            with self._twice_differentiable() if at_images else nullcontext():
                teacher_logits = _logits(self.teacher, pixel_values)
        if labels is None:
            return StudentTeacherOutput(logits=teacher_logits, student_logits=student_logits)

        student_loss = self._student_loss(student_logits, labels)
        if not train_teacher:
            return StudentTeacherOutput(loss=student_loss, student_logits=student_logits, student_loss=student_loss)
        teacher_loss = F.cross_entropy(teacher_logits, labels)
        # evaluation reports the teacher alone: it is the model that is shipped
        loss = student_loss + teacher_loss if self.training else teacher_loss
        maps = None
        if at_images:
            maps = self._maps_at_images(pixel_values, labels, student_logits, teacher_logits)
            pixel_values.requires_grad_(False)  # the last backward then computes no image gradient of its own
        elif unlearn:
            path = draw_path(labels, generator) if partners is None else (partners, points)
            maps = self._maps_on_path(pixel_values, labels, *path) if path else None
        of_term = self._term(*maps) if maps else {}
        if of_term:
            loss = loss + unlearning_weight * of_term["unlearning_loss"]
        return StudentTeacherOutput(
            loss=loss,
            logits=teacher_logits,
            student_logits=student_logits,
            student_loss=student_loss,
            teacher_loss=teacher_loss,
            **of_term,
        )

    def _twice_differentiable(self):
        """Around a forward of the teacher: its second derivative exists and is cheap."""
        # recomputed activations would not be those of the rules, which work on the forward pass only
        return twice_differentiable_attention() if self._recomputes_activations else fast_double_backward()

    def _term(self, student_map: Tensor, teacher_map: Tensor) -> dict[str, Tensor]:
        shown = apply_control(student_map, self.variant.control, self.variant.term)
        return {
            "unlearning_loss": unlearning_term(shown, teacher_map, self.variant.term).mean(),
            "overlap": overlap(student_map, teacher_map.detach()).mean(),
            "dead_maps": sum((m.detach() == 0).all(dim=1).sum() for m in (student_map, teacher_map)),
        }

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """Recompute activations in the backward passes, in both models. Called by the Trainer.

        Raises:
            UleError: a model with BatchNorm, whose statistics every recomputation would update again.
        """
        kwargs = self._before_recomputing(activation_checkpointing_kwargs)
        for model in (self.student, self.teacher):
            model.activation_checkpointing_enable(
                activation_checkpointing_kwargs=kwargs, every_n_layers=every_n_layers, offload=offload
            )

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict | None = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """The same, as transformers calls it before 5.23."""
        kwargs = self._before_recomputing(gradient_checkpointing_kwargs)
        for model in (self.student, self.teacher):
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=kwargs, every_n_layers=every_n_layers, offload=offload
            )

    def _before_recomputing(self, kwargs: dict | None) -> dict:
        if any(isinstance(m, _NormBase) and m.track_running_stats for m in self.modules()):
            raise UleError(
                "activation_checkpointing would update BatchNorm's statistics three times a step; "
                "leave it out, or use a model without BatchNorm"
            )
        self._recomputes_activations = True
        return {**(kwargs or {}), "use_reentrant": False}

    def _student_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.variant.student_loss == "cross_entropy":
            return F.cross_entropy(logits, labels)
        return generalised_cross_entropy(logits, labels, self.variant.gce_q)

    def _maps_at_images(
        self, images: Tensor, labels: Tensor, student_logits: Tensor, teacher_logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        score = self.variant.score
        of_student = input_gradient(class_score(student_logits, labels, score), images, retain_graph=True)
        of_teacher = input_gradient(class_score(teacher_logits, labels, score), images, create_graph=True)
        return self._maps(of_student, of_teacher)

    def _maps_on_path(self, images: Tensor, labels: Tensor, partners: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        mixed, difference = mix(images.detach(), partners, points)
        mixed.requires_grad_()

        def attribution(model: nn.Module, create_graph: bool) -> Tensor:
            score = class_score(_logits(model, mixed), labels, self.variant.score, labels[partners])
            return path_attribution(score, mixed, difference, create_graph)

        with frozen_batch_statistics(self):
            of_student = attribution(self.student, create_graph=False)
            with self._twice_differentiable():
                of_teacher = attribution(self.teacher, create_graph=True)
        mixed.requires_grad_(False)
        return self._maps(of_student, of_teacher)

    def _maps(self, of_student: Tensor, of_teacher: Tensor) -> tuple[Tensor, Tensor]:
        variant, sum_before_sign = self.variant, self.variant.attribution == "path"
        # ranks have no gradient, so only the student's map, which needs none, is ranked
        teacher_norm = "max" if variant.map_norm == "rank" else variant.map_norm
        return (
            attribution_map(of_student, variant.grid, variant.map_sign, variant.map_norm, sum_before_sign),
            attribution_map(of_teacher, variant.grid, variant.map_sign, teacher_norm, sum_before_sign),
        )


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    """mean (1 − p_y^q) / q (Zhang and Sabuncu 2018): q → 0 is cross-entropy, q = 1 the mean absolute error.

    Its gradient is the cross-entropy's times p_y^q: what is already easy weighs most, so the student settles on the
    shortcut (Nam et al. 2020).

    >>> generalised_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), q=1.0)
    tensor(0.5000)
    """
    log_prob = -F.cross_entropy(logits, labels, reduction="none")
    return (-torch.expm1(q * log_prob) / q).mean()


@contextmanager
def frozen_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Batch-normalise as in training, but leave the running statistics alone (mixed images are not data)."""
    tracking = [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def twice_differentiable_attention():
    """Attention through PyTorch's MATH backend: the fused kernels have no second derivative (pytorch#116350)."""
    return sdpa_kernel(SDPBackend.MATH)


def _logits(model: nn.Module, pixel_values: Tensor) -> Tensor:
    output = model(pixel_values)
    return output if isinstance(output, Tensor) else output.logits
