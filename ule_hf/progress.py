"""The progress bar of the recipes: one readable line an epoch instead of the Trainer's dictionaries."""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback


class EpochLines(ProgressCallback):
    """transformers' progress bar; losses, overlap of the maps and validation of both models in a line an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._of_training: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or logs is None:
            return
        if "step_cost" in logs:
            self.training_bar.write(
                f"a ULE step takes {logs['ule_step_seconds']:.3f} s, a plain one {logs['plain_step_seconds']:.3f} s: "
                f"{logs['step_cost']:.1f} times"
            )
        elif "eval_accuracy" in logs:
            self.training_bar.write(self._line(logs, state.epoch))
        elif "loss" in logs:
            self._of_training = logs

    def _line(self, validation: dict[str, float], epoch: float) -> str:
        names = {"student_loss": "student loss", "teacher_loss": "teacher loss", "overlap": "overlap"}
        if "student_loss" not in self._of_training:
            names = {"loss": "loss"}
        shown = [f"{name} {self._of_training[key]:.3f}" for key, name in names.items() if key in self._of_training]
        counts = ("dead_maps", "batches_of_one_class")
        shown += [f"{key.replace('_', ' ')} {self._of_training[key]}" for key in counts if key in self._of_training]
        models = {"student ": "student_", "teacher ": ""} if "eval_student_accuracy" in validation else {"": ""}
        worst = [f"{n}{100 * validation[f'eval_{p}worst_class_accuracy']:.1f}" for n, p in models.items()]
        shown.append(f"validation, worst class: {' '.join(worst)}")
        return f"epoch {epoch:g}  " + "  ".join(shown)
