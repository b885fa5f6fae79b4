"""What a run watches while it trains: numbers that are not finite, processes that differ, a student without a clue.

`WatchedTrainer` is the base of :class:`ule_hf.publishing.PublishingTrainer`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from ule_hf.checkpoints import WholeCheckpoints, last_checkpoint
from ule_hf.errors import UleError

logger = logging.getLogger(__name__)

COUNTS_FILE = "counts.json"
SHOWN_IMAGES = 8
SKIPPED_IN_A_ROW = 20  # then something else is wrong than a batch


class WatchedTrainer(WholeCheckpoints):
    """A Trainer that lets no number in that is not finite, and ends with the same model on every process.

    A loss or gradient that is not finite stops the run (``on_nonfinite="stop"``) or costs the step ("skip"): on every
    process, weights, optimiser and BatchNorm's statistics stay as they were, and only the schedule goes on.
    """

    #: What `log` shows as totals since the start, once there are any; ``self._counts`` collects them.
    logged_counts: tuple[str, ...] = ()
    #: What to try when a number is not finite.
    remedy = "a lower learning_rate, or max_grad_norm 1.0"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = (*self.logged_counts, "skipped_steps")
        self._counts = {name: torch.zeros((), device=self.args.device) for name in names}
        self._step_of_images: int | None = None
        self._image_ids: list[str] = []  # of this process, since the last optimiser step
        self._kept_buffers: list[Tensor] = []
        self._what = self._figures = ""
        self._skipped_in_a_row = 0
        self._warned: set[str] = set()

    # ---- numbers ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Remembers what a skipped step has to put back; a loss that is not finite would stay in the Trainer's sum."""
        skipping = self.args.on_nonfinite == "skip"
        if self._step_of_images != self.state.global_step:
            self._step_of_images, self._image_ids = self.state.global_step, []
            self._what = self._figures = ""
            self._kept_buffers = [buffer.clone() for buffer in self.model.buffers()] if skipping else []
        self._image_ids += inputs.get("image_id", [])
        loss = super().training_step(model, inputs, num_items_in_batch)
        return torch.where(loss.isfinite(), loss, 0.0) if skipping else loss

    def require_finite(self, loss: Tensor, describe: Callable[[], tuple[str, str]] | None = None) -> Tensor:
        """``loss`` where it is finite. To be called in ``compute_loss``.

        Args:
            describe: asked where it is not: what, and which figures.

        Raises:
            UleError: it is not, with ``on_nonfinite="stop"``. With "skip", what is returned makes every gradient NaN,
                on every process: so they skip the step together without asking one another.
        """
        if loss.isfinite():
            return loss
        what, figures = describe() if describe else ("the loss", "")
        self._what, self._figures = f"{what} is not finite", f" ({figures})" if figures else ""
        if self.args.on_nonfinite == "stop":
            raise self._not_finite(self._what)
        return loss * float("nan")

    def _not_finite(self, what: str) -> UleError:
        last = last_checkpoint(self.args.output_dir)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been written"
        return UleError(f"{what} at step {self.state.global_step + 1}{self._of_step()}; {kept}; try {self.remedy}")

    def _of_step(self) -> str:
        more = len(self._image_ids) - SHOWN_IMAGES
        shown = ", ".join(map(str, self._image_ids[:SHOWN_IMAGES])) + (f" and {more} more" if more > 0 else "")
        of_process = f" of process {self.args.process_index}" if self.args.world_size > 1 else ""
        return self._figures + (f", images{of_process}: {shown}" if shown else "")

    def clipped_apart(self) -> Mapping[str, nn.Module]:
        """The models whose gradients are clipped each by its own norm, by name; the last one's norm is logged."""
        return {"model": self.model}

    def clip(self, max_norm: float) -> dict[str, Tensor]:
        """Clip each gradient; the norms before. The step is skipped where one is not finite."""
        norms = {n: self.accelerator.clip_grad_norm_(m.parameters(), max_norm) for n, m in self.clipped_apart().items()}
        finite = torch.stack(list(norms.values())).isfinite().tolist()
        wrong = [name for name, is_finite in zip(norms, finite, strict=True) if not is_finite]
        if not wrong:
            self._skipped_in_a_row = 0
            return norms
        what = self._what or f"the {wrong[0]}'s gradient is not finite"
        self._skipped_in_a_row += 1
        if self.args.on_nonfinite == "stop":
            raise self._not_finite(what)
        if self._skipped_in_a_row > SKIPPED_IN_A_ROW:
            raise self._not_finite(f"{SKIPPED_IN_A_ROW} steps in a row were skipped: {what}")
        self.model.zero_grad(set_to_none=True)  # an optimiser passes over parameters without a gradient
        with torch.no_grad():
            for buffer, kept in zip(self.model.buffers(), self._kept_buffers, strict=True):
                buffer.copy_(kept)
        if self.is_world_process_zero():
            self._counts["skipped_steps"] += 1
        if self._what or self.is_world_process_zero():
            logger.warning("step %d is skipped: %s%s", self.state.global_step + 1, what, self._of_step())
        return norms

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Each model apart: the Trainer's joint norm would let one shrink the other's step."""
        return list(self.clip(self.args.max_grad_norm).values())[-1]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        """As above, without clipping where ``max_grad_norm`` is 0."""
        return list(self.clip(float("inf")).values())[-1] if grad_norm is None else grad_norm

    # ---- counts and warnings ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the totals, over all processes, and how many checkpoints could not be saved."""
        if "loss" in logs:
            totals = {**self._totals(), "failed_saves": self.failed_saves}
            logs |= {name: total for name, total in totals.items() if total}
        super().log(logs, start_time)

    def _totals(self) -> dict[str, int]:
        totals = self.accelerator.reduce(torch.stack(list(self._counts.values())), reduction="sum").tolist()
        return {name: int(total) for name, total in zip(self._counts, totals, strict=True)}

    def warn_once(self, message: str, *args: Any) -> None:
        """A warning of the first process, the first time only."""
        if message not in self._warned and self.is_world_process_zero():
            logger.warning(message, *args)
        self._warned.add(message)

    def _save_rng_state(self, output_dir: str) -> None:
        """And the totals, which a resumed run logs on."""
        super()._save_rng_state(output_dir)
        totals = self._totals()
        if self.args.should_save:
            Path(output_dir, COUNTS_FILE).write_text(json.dumps(totals) + "\n", encoding="utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.is_world_process_zero() and Path(checkpoint, COUNTS_FILE).is_file():
            saved = json.loads(Path(checkpoint, COUNTS_FILE).read_text(encoding="utf-8"))
            for name in self._counts.keys() & saved.keys():
                self._counts[name].fill_(saved[name])

    # ---- processes ----

    def share_buffers(self) -> None:
        """Every process takes the first one's BatchNorm statistics, which are saved, and from which each step begins
        (DistributedDataParallel sends them round before a forward, so after the last one they differ)."""
        if self.args.world_size > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """With one model on all processes."""
        self.share_buffers()
        return super().evaluation_loop(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Before the best epoch is loaded, which would hide a difference.

        Raises:
            UleError: the processes do not hold the same parameters and buffers.
        """
        self.share_buffers()
        if self.args.world_size > 1:
            digests = gather_object([tensor_digests(self.model)])
            for rank, other in enumerate(digests):
                differing = [name for name, digest in digests[0].items() if other[name] != digest]
                if differing:
                    raise UleError(
                        f"{differing[0]} ({len(differing)} of {len(other)} tensors) is not the same on processes 0 and "
                        f"{rank} at the end of training: each has trained a model of its own, and neither is saved"
                    )
        return super()._finalize_training(*args, **kwargs)


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """A hash of each parameter and buffer of ``model``, by name."""
    return {
        name: hashlib.blake2b(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), digest_size=16
        ).hexdigest()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }


class StudentLearns(TrainerCallback):
    """Warns where, over an epoch of training with the term, the student was no better than the commonest class."""

    def __init__(self, trainer: WatchedTrainer, num_classes: int) -> None:
        self.trainer = trainer
        self._right = torch.zeros((), device=trainer.args.device)
        self._of_class = torch.zeros(num_classes, device=trainer.args.device)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Counts a batch: class ids, ``[B]`` each."""
        self._right += (predicted == labels).sum()
        self._of_class += torch.bincount(labels, minlength=len(self._of_class))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        right, *of_class = self.trainer.accelerator.reduce(
            torch.cat([self._right[None], self._of_class]), reduction="sum"
        ).tolist()
        self._right.zero_()
        self._of_class.zero_()
        if of_class and sum(of_class) > max(of_class) >= right:
            self.trainer.warn_once(
                "the student has learned nothing: in epoch %d it is right on %.1f %% of the training images, and the "
                "commonest class alone is %.1f %%; its saliency map, and so the unlearning term, means nothing (a "
                "higher student_learning_rate, or a longer student_head_start?)",
                *(round(state.epoch), 100 * right / sum(of_class), 100 * max(of_class) / sum(of_class)),
            )
