"""Student and teacher as one module: everything a training step needs happens in one call of its forward.

One call, because that is what DistributedDataParallel synchronises, what autocast covers, and what updates each
BatchNorm's statistics once.

The student needs first derivatives only, so its backward runs inside the forward, before the teacher is called: its
graph is freed early, and for the score ``log_prob`` the input gradient is a by-product. The outer backward hands the
ready gradients out, where DistributedDataParallel's hooks, gradient accumulation and a scaled loss expect them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from transformers.utils import ModelOutput

from ule_hf.attribution import attribution_map, class_score, draw_path, input_gradient, log_odds, mix, path_attribution
from ule_hf.balancing import balancing_weights, difficulty_for_the_student, tally
from ule_hf.errors import UleError
from ule_hf.exchange import control_cells, decisive_cells, exchange
from ule_hf.second_order import fast_double_backward
from ule_hf.unlearning import apply_control, correlation, overlap, unlearning_term
from ule_hf.variant import StudentLoss, Variant


@dataclass
class StudentTeacherOutput(ModelOutput):
    """What one forward gives.

    ``loss`` is what to call ``backward`` on: student_loss + teacher_loss + unlearning_weight · unlearning_loss.
    ``logits`` (the teacher's, None while it is not trained) and ``student_logits`` are ``[B, K]``; in training the
    student's are detached. All from ``unlearning_loss`` on are scalars, and None where the step has no such term: no
    weight, evaluation, or a path and one class only; but for ``tally``, the batch's where errors are balanced.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    student_logits: Tensor | None = None
    student_loss: Tensor | None = None
    teacher_loss: Tensor | None = None
    unlearning_loss: Tensor | None = None
    overlap: Tensor | None = None
    dead_maps: Tensor | None = None
    exchanged_share: Tensor | None = None
    exchanged_accuracy: Tensor | None = None
    student_turned: Tensor | None = None
    tally: Tensor | None = None


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
        train_student: bool = True,
        unlearning_fraction: float = 1.0,
        balance: Tensor | None = None,
        ask_student: bool = False,
        partners: Tensor | None = None,
        points: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> StudentTeacherOutput:
        """One step's losses (training mode) or both models' logits (evaluation mode).

        Args:
            pixel_values: ``[B, C, H, W]``, normalised.
            labels: ``[B]`` class ids; without them no loss is computed.
            unlearning_weight: λ; at 0 there is no term and no map is computed.
            train_teacher: False while the student has its head start; the teacher is then not called at all.
            train_student: False to leave the student's weights as they are; BatchNorm goes on to count the images,
                because a head start may be too short for its statistics.
            unlearning_fraction: below 1 the term is the mean over the first ⌈fraction · B⌉ samples, two at least. Both
                models see those once more, with batch statistics of their own: the term is that of the smaller batch.
            balance: ``[2, K, 2]``, the :func:`ule_hf.balancing.tally` of relative difficulties before this batch; the
                teacher's loss is then weighted by :func:`ule_hf.balancing.balancing_weights`, the term is the
                :func:`ule_hf.unlearning.correlation` of the two models' log-odds, and the student's loss is the
                generalised cross-entropy, as LfF's biased model has it: it must not learn the images it is wrong about.
            ask_student: with term ``exchange``, also what the student makes of the exchanged images.
            partners, points: ``[B]`` each, to fix the paths; drawn with ``generator`` when not given.
        """
        if labels is None:
            return StudentTeacherOutput(
                logits=_logits(self.teacher, pixel_values) if train_teacher else None,
                student_logits=_logits(self.student, pixel_values),
            )
        balances = self.training and balance is not None
        unlearn = self.training and train_teacher and unlearning_weight > 0
        at_images = unlearn and not balances and self.variant.attribution == "gradient" and unlearning_fraction == 1
        loss_name = "generalised_cross_entropy" if balances else self.variant.student_loss

        with nullcontext() if train_student else evaluation_mode(self.student, but_for_batch_norm=True):
            student = self._student_pass(pixel_values, labels, loss_name, train_student, saliency=at_images)
        if not train_teacher:
            student_loss = student.loss_with_gradients()
            return StudentTeacherOutput(loss=student_loss, student_logits=student.logits, student_loss=student_loss)
        images = pixel_values.detach().requires_grad_() if at_images else pixel_values
        with self._twice_differentiable() if at_images else nullcontext():
            teacher_logits = _logits(self.teacher, images)
        of_batch = None
        if balances:
            difficulty = difficulty_for_the_student(student.logits, teacher_logits, labels)
            of_batch = tally(student.logits, labels, difficulty)
            weights = balancing_weights(student.logits, labels, difficulty, balance + of_batch, self.variant.control)
            teacher_loss = (weights * F.cross_entropy(teacher_logits, labels, reduction="none")).mean()
        else:
            teacher_loss = F.cross_entropy(teacher_logits, labels)

        of_term = {}
        if unlearn and balances:
            scores = (log_odds(logits, labels) for logits in (student.logits, teacher_logits))
            of_term = {"unlearning_loss": correlation(*scores, labels, self.variant.control)}
        elif at_images:
            score = class_score(teacher_logits, labels, self.variant.score)
            of_term = self._term(*self._maps(student.saliency, input_gradient(score, images, create_graph=True)))
            images.requires_grad_(False)  # the last backward then computes no image gradient of its own
        elif unlearn:
            path = None
            if self.variant.attribution == "path":
                path = draw_path(labels, generator) if partners is None else (partners, points)
            some = slice(max(2, math.ceil(unlearning_fraction * len(labels))))
            with nullcontext() if train_student else evaluation_mode(self.student):
                of_term = self._term_of_some(pixel_values.detach(), labels, some, path, generator)
            if ask_student and of_term:
                with evaluation_mode(self.student, but_for_batch_norm=True):
                    of_term["student_turned"] = self._share_turned(pixel_values.detach(), labels, path, generator)

        # Last, so that in the backward it comes first: a reduction over processes then overlaps with the teacher's.
        student_loss = student.loss_with_gradients()
        # evaluation reports the teacher alone: it is the model that is shipped
        loss = student_loss + teacher_loss if self.training else teacher_loss
        if of_term:
            loss = loss + unlearning_weight * of_term["unlearning_loss"]
        return StudentTeacherOutput(
            loss=loss,
            logits=teacher_logits,
            student_logits=student.logits,
            student_loss=student_loss,
            teacher_loss=teacher_loss,
            tally=of_batch,
            **of_term,
        )

    def _student_pass(
        self, images: Tensor, labels: Tensor, loss_name: StudentLoss, train: bool, saliency: bool
    ) -> _StudentPass:
        """The student's loss, its gradients (in training), and the score's gradient at the images where asked for."""
        images = images.detach().requires_grad_(saliency)
        with nullcontext() if train or saliency else torch.no_grad():
            logits = _logits(self.student, images)
            if loss_name == "cross_entropy":
                loss = F.cross_entropy(logits, labels)
            else:
                loss = generalised_cross_entropy(logits, labels, self.variant.gce_q)
        parameters = [p for p in self.student.parameters() if train and p.requires_grad]
        if not (self.training and loss.requires_grad):
            return _StudentPass(logits, loss)

        of_images = None
        with torch.autocast(images.device.type, enabled=False):  # as in any backward: autocast is for the forward
            # Σ log p is −B times the mean cross-entropy, so that its input gradient comes with the loss's
            together = saliency and (loss_name, self.variant.score) == ("cross_entropy", "log_prob")
            if saliency and not together:
                of_images = input_gradient(class_score(logits, labels, self.variant.score), images, retain_graph=True)
            wanted = [images, *parameters] if together else parameters
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
            if together:
                of_images, gradients = -len(labels) * gradients[0], gradients[1:]
        known = {p: g for p, g in zip(parameters, gradients, strict=True) if g is not None}
        return _StudentPass(logits.detach(), loss.detach(), of_images, known)

    def _twice_differentiable(self):
        """Around a forward of the teacher: its second derivative exists and is cheap."""
        # recomputed activations would not be those of the rules, which work on the forward pass only
        return twice_differentiable_attention() if self._recomputes_activations else fast_double_backward()

    def _term(self, student_map: Tensor, teacher_map: Tensor) -> dict[str, Tensor]:
        shown = apply_control(student_map, self.variant.control, self.variant.term)
        return {
            # comparing (`mass`) would swallow a student's map that is not finite
            "unlearning_loss": unlearning_term(shown, teacher_map, self.variant.term).mean() + 0 * student_map.sum(),
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

    def _term_of_some(
        self,
        images: Tensor,
        labels: Tensor,
        some: slice,
        path: tuple[Tensor, Tensor] | None,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """The term from passes of its own: on the path, or at some of the images. Empty where there is no path."""
        if self.variant.attribution == "path" and path is None:
            return {}

        def attribution(model: nn.Module, create_graph: bool) -> Tensor:
            if path is not None:
                return self._path_attribution(model, images, labels, path, some, create_graph)
            inputs = images[some].detach().requires_grad_()
            score = class_score(_logits(model, inputs), labels[some], self.variant.score)
            of_model = input_gradient(score, inputs, create_graph)
            inputs.requires_grad_(False)
            return of_model

        with frozen_batch_statistics(self):
            of_student = attribution(self.student, create_graph=False)
        if self.variant.term == "exchange":
            return self._exchange_term(of_student, images, labels, path[0], generator)
        with frozen_batch_statistics(self), self._twice_differentiable():
            of_teacher = attribution(self.teacher, create_graph=True)
        return self._term(*self._maps(of_student, of_teacher))

    def _path_attribution(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        path: tuple[Tensor, Tensor],
        some: slice = slice(None),
        create_graph: bool = False,
    ) -> Tensor:
        """A model's, at one point of the path of ``some`` of the images: ``[len(some), C, H, W]``."""
        inputs, difference = (t[some] for t in mix(images, *path))
        inputs = inputs.detach().requires_grad_()
        score = class_score(_logits(model, inputs), labels[some], self.variant.score, labels[path[0]][some])
        of_model = path_attribution(score, inputs, difference, create_graph)
        inputs.requires_grad_(False)  # the last backward then computes no image gradient of its own
        return of_model

    def _exchange_term(
        self,
        of_student: Tensor,
        images: Tensor,
        labels: Tensor,
        partners: Tensor,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """The teacher's cross-entropy where the cells that decide for the student come from the partner."""
        student_map, cells = self._map_and_cells(of_student, generator)
        # These do count in BatchNorm's running statistics: the teacher has to answer for such images as for any other,
        # and without them it tells them apart by their statistics, and keeps the shortcut for the others.
        exchanged = exchange(images, partners, cells, self.variant.grid)
        logits = _logits(self.teacher, exchanged)
        own, other = labels[: len(logits)], labels[partners[: len(logits)]]
        return {
            # comparing would swallow a student's map that is not finite
            "unlearning_loss": F.cross_entropy(logits, own) + 0 * student_map.sum(),
            "dead_maps": (student_map == 0).all(dim=1).sum(),
            "exchanged_share": cells.float().mean(),
            "exchanged_accuracy": (class_score(logits.detach(), own, "difference", other) < 0).float().mean(),
        }

    def _share_turned(
        self, images: Tensor, labels: Tensor, path: tuple[Tensor, Tensor], generator: torch.Generator | None
    ) -> Tensor:
        """How many images the student takes for their partner's class when the cells that decide for it are exchanged.

        By the statistics of the batch, the map too: the running ones of a student that was just frozen have hardly
        counted yet, and by them it cannot say.
        """
        partners = path[0]
        with frozen_batch_statistics(self.student):
            of_student = self._path_attribution(self.student, images, labels, path)
            _, cells = self._map_and_cells(of_student, generator)
            with torch.no_grad():
                logits = _logits(self.student, exchange(images, partners, cells, self.variant.grid))
        return (class_score(logits, labels, "difference", labels[partners]) > 0).float().mean()

    def _map_and_cells(self, of_student: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Of term ``exchange``: the student's map, and the cells that come from the partner."""
        variant = self.variant
        student_map = attribution_map(of_student, variant.grid, variant.map_sign, variant.map_norm, True)
        return student_map, control_cells(decisive_cells(student_map, variant.coverage), variant.control, generator)

    def _maps(self, of_student: Tensor, of_teacher: Tensor) -> tuple[Tensor, Tensor]:
        variant, sum_before_sign = self.variant, self.variant.attribution == "path"
        # ranks have no gradient, so only the student's map, which needs none, is ranked
        teacher_norm = "max" if variant.map_norm == "rank" else variant.map_norm
        return (
            attribution_map(of_student, variant.grid, variant.map_sign, variant.map_norm, sum_before_sign),
            attribution_map(of_teacher, variant.grid, variant.map_sign, teacher_norm, sum_before_sign),
        )


@dataclass
class _StudentPass:
    """What the student's forward and backward leave: nothing that holds a graph, in training."""

    logits: Tensor
    loss: Tensor
    saliency: Tensor | None = None
    gradients: dict[nn.Parameter, Tensor] | None = None

    def loss_with_gradients(self) -> Tensor:
        """The loss, as a node whose backward gives each parameter its ready gradient."""
        return _HandOut.apply(self.loss, [*self.gradients.values()], *self.gradients) if self.gradients else self.loss


class _HandOut(Function):
    """(loss, gradients, parameters) → loss, differentiable in the parameters."""

    @staticmethod
    def forward(ctx, loss, gradients, *parameters):
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return None, None, *torch._foreach_mul(ctx.saved_tensors, g)


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
def evaluation_mode(module: nn.Module, but_for_batch_norm: bool = False) -> Iterator[None]:
    """``module.eval()`` for a while; ``but_for_batch_norm`` leaves that in training, statistics and all."""
    kept = _NormBase if but_for_batch_norm else ()
    training = [m for m in module.modules() if m.training and not isinstance(m, kept)]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


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
