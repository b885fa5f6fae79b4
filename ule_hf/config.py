"""`ULEConfig`: a `TrainingArguments` with the choices of ULE."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from transformers import TrainingArguments

from ule_hf.attribution import Norm, Score, Sign
from ule_hf.errors import UleError
from ule_hf.unlearning import Control
from ule_hf.variant import PRESETS, Attribution, StudentLoss, Term, Variant, parse_grid

WITHOUT_GROUPS = "worst_class_accuracy"  # of validation; the rule of selection that needs no group labels


#: Options of training of which another value makes another run.
DECIDES = (
    *(field.name for field in fields(Variant)),
    *("unlearning_weight", "unlearning_warmup", "unlearning_decay", "unlearning_interval", "unlearning_fraction"),
    *("trial_accuracy", "balance_errors", "student_head_start", "head_start_accuracy", "freeze_student"),
    *("class_balanced_sampling", "student_learning_rate", "student_weight_decay"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
    *("optim", "optim_args", "learning_rate", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "bf16"),
)


@dataclass
class ULEConfig(TrainingArguments):
    """Options of :class:`ule_hf.trainer.ULETrainer`; everything a `TrainingArguments` has, and:

    > The method: a preset fixes these, an option given beside it wins

    attribution, score, grid, map_sign, map_norm, term, unlearning_weight, unlearning_decay, trial_accuracy,
    balance_errors, student_loss, student_head_start, head_start_accuracy, freeze_student

    > Schedule, student, controls

    unlearning_warmup, unlearning_interval, unlearning_fraction, gce_q, control, student_learning_rate,
    student_weight_decay

    > Faults

    on_nonfinite

    > Hub

    hub_push_student. ``hub_strategy`` "checkpoint" and "all_checkpoints" push whole checkpoints, students included.

    > Defaults that differ from `TrainingArguments`

    Evaluation, checkpoints and log lines come every epoch; term exchange keeps the last epoch, the other terms load the
    best one by worst-*class* validation accuracy at the end, because that rule needs no group labels; with
    ``metric_for_best_model="worst_group_accuracy"``, where the validation data has groups, all terms load the best one.
    Columns are kept for the image transforms; a loss that is not finite is shown.

    Raises:
        UleError: a choice that is not known, or an option that cannot work with second derivatives.
    """

    preset: Literal["paper", "path", "exchange", "auto"] = field(
        default="auto",
        metadata={
            "help": "exchange: the cells that decide for the student come from pictures of other classes. auto: "
            "exchange where the student decides by cells, else its errors weigh more and the teacher must not vary "
            "with it. path: expected gradients and a biased student. paper: our reading of arXiv 2409.02792."
        },
    )
    attribution: Attribution | None = field(
        default=None, metadata={"help": "What is differentiated: the score at the images, or on paths between two."}
    )
    score: Score | None = field(default=None, metadata={"help": "The scalar that is differentiated."})
    grid: str | None = field(
        default=None, metadata={"help": "Cells of the map: ROWSxCOLUMNS, such as 4x4 or 2x1, or dense."}
    )
    map_sign: Sign | None = field(default=None, metadata={"help": "What becomes of an attribution's sign."})
    map_norm: Norm | None = field(default=None, metadata={"help": "What each map is divided by."})
    term: Term | None = field(default=None, metadata={"help": "How student's and teacher's map are compared."})
    unlearning_weight: float | None = field(
        default=None, metadata={"help": "λ, the weight of the term; 0 trains the teacher plainly."}
    )
    unlearning_warmup: float = field(
        default=0.0, metadata={"help": "Epochs over which the weight rises from 0, after the head start."}
    )
    unlearning_decay: bool | None = field(
        default=None, metadata={"help": "The weight falls linearly to 0 at the end of training."}
    )
    trial_accuracy: float | None = field(
        default=None,
        metadata={
            "help": "term exchange is on trial: it ends where the student takes fewer than this share of exchanged "
            "images for the partner's class, after a twelfth of the teacher's training, or the teacher more than the "
            "rest, after a third."
        },
    )
    balance_errors: bool | None = field(
        default=None,
        metadata={
            "help": "Where the exchange does not turn the student, it trains on with the generalised cross-entropy, "
            "what it gets wrong of a class weighs as much in the teacher's loss as what it gets right, and the term is "
            "the correlation of the two within the classes; if it came to head_start_accuracy in its first epoch, on "
            "images it had not seen."
        },
    )
    unlearning_interval: int = field(
        default=1, metadata={"help": "The term at every k-th optimiser step only, with k times its weight."}
    )
    unlearning_fraction: float = field(
        default=1.0, metadata={"help": "The term on this part of each batch, by a pass of its own."}
    )
    control: Control = field(
        default="none", metadata={"help": "What stands in for the student's map, to see whether the student teaches."}
    )
    student_loss: StudentLoss | None = field(default=None, metadata={"help": "The student's loss."})
    gce_q: float = field(default=0.7, metadata={"help": "q of the generalised cross-entropy."})
    student_head_start: float | None = field(
        default=None,
        metadata={"help": "Epochs, of num_train_epochs, that the student trains before the teacher joins."},
    )
    head_start_accuracy: float | None = field(
        default=None,
        metadata={
            "help": "The head start ends sooner: after about twice the time that the student takes to be right on this "
            "share of its last four batches (mean over the classes)."
        },
    )
    freeze_student: bool | None = field(
        default=None, metadata={"help": "Train the student no more once the teacher has joined."}
    )
    coverage: float = field(
        default=0.7, metadata={"help": "term exchange: share of the student's decision that is exchanged."}
    )
    class_balanced_sampling: bool = field(
        default=False, metadata={"help": "ULE: draw training images so that every class is equally likely."}
    )
    student_learning_rate: float | None = field(default=None, metadata={"help": "Defaults to learning_rate."})
    student_weight_decay: float | None = field(default=None, metadata={"help": "Defaults to weight_decay."})
    channels_last: bool | None = field(
        default=None, metadata={"help": "Memory format of weights and images; by default on for convolutional models."}
    )
    report_step_cost: bool = field(
        default=False, metadata={"help": "Measure a ULE step beside a plain step once, before training."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Discard the model that the output folder already holds."}
    )
    on_nonfinite: Literal["stop", "skip"] = field(
        default="stop",
        metadata={"help": "A loss, saliency map or gradient that is not finite stops the run, or skips the step."},
    )
    hub_push_student: bool = field(default=False, metadata={"help": "Push the trained student too, as student/."})

    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    logging_strategy: str = "epoch"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool | None = field(
        default=None,
        metadata={
            "help": "By default on, but for term exchange, whose last epoch is kept unless another "
            "metric_for_best_model is asked for."
        },
    )
    metric_for_best_model: str | None = WITHOUT_GROUPS
    remove_unused_columns: bool | None = False
    logging_nan_inf_filter: bool = False

    def __post_init__(self) -> None:
        self._apply_preset()
        try:
            super().__post_init__()
        except ValueError as error:  # transformers' own refusals, such as bf16 where nothing has it, as our one line
            raise UleError(" ".join(str(error).split())) from error
        self._refuse_what_cannot_work()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is nothing to pin it for, and PyTorch warns at every epoch
        if self.ddp_find_unused_parameters is None:
            # during its head start the student's parameters are the only ones used
            self.ddp_find_unused_parameters = self.student_head_start > 0

    def _apply_preset(self) -> None:
        if self.preset not in PRESETS:
            raise UleError(f"preset {self.preset!r} is not known; choose one of {', '.join(PRESETS)}")
        if self.score is None and self.attribution == "gradient":
            self.score = "predicted"  # whichever the preset: its score may need a path
        head_start, freeze = self.student_head_start, self.freeze_student
        trial, balancing = self.trial_accuracy, self.balance_errors
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if head_start is None and self.head_start_accuracy is not None:
            # it is a limit then, which a short run must not reach
            self.student_head_start = min(self.student_head_start, self.num_train_epochs / 4)
        # what a preset says of the head start and of its term goes without them
        if freeze is None and not self.student_head_start:
            self.freeze_student = False
        if trial is None and self.term != "exchange":
            self.trial_accuracy = None
        if balancing is None:
            self.balance_errors = bool(self.balance_errors) and self.trial_accuracy is not None
        if self.load_best_model_at_end is None:
            # by class, validation that shares the shortcut is at its best where the teacher still uses it
            self.load_best_model_at_end = self.term != "exchange" or self.metric_for_best_model != WITHOUT_GROUPS
        if self.max_steps <= 0 and self.num_train_epochs <= self.student_head_start:
            raise UleError(
                f"student_head_start is {self.student_head_start:g} of num_train_epochs {self.num_train_epochs:g}, so "
                "the teacher would never be trained; give more epochs or a shorter head start"
            )
        if self.head_start_accuracy is not None and not 0 < self.head_start_accuracy <= 1:
            raise UleError(f"head_start_accuracy is {self.head_start_accuracy}; it must lie in (0, 1]")
        if self.trial_accuracy is not None and (self.term != "exchange" or not 0 < self.trial_accuracy <= 1):
            raise UleError(f"trial_accuracy is {self.trial_accuracy}; it must lie in (0, 1], and needs term 'exchange'")
        if self.balance_errors and (self.trial_accuracy is None or self.head_start_accuracy is None):
            raise UleError("balance_errors needs a trial_accuracy, to begin, and a head_start_accuracy; give both")
        if self.freeze_student and not self.student_head_start > 0:
            raise UleError("freeze_student would keep an untrained student; give it a student_head_start above 0")
        if self.on_nonfinite not in ("stop", "skip"):
            raise UleError(f"on_nonfinite {self.on_nonfinite!r} is not known; choose one of stop, skip")
        if self.unlearning_interval < 1:
            raise UleError(f"unlearning_interval is {self.unlearning_interval}; it must be 1 or more steps")
        if not 0 < self.unlearning_fraction <= 1:
            raise UleError(f"unlearning_fraction is {self.unlearning_fraction}; it must lie in (0, 1]")
        for name in ("unlearning_weight", "unlearning_warmup", "student_head_start"):
            if getattr(self, name) < 0:
                raise UleError(f"{name} is {getattr(self, name)}; it must not be negative")
        self.variant()

    def changes_since(self, recorded: dict[str, Any]) -> list[str]:
        """The options that make another training of it, as ``learning_rate 0.1 (was 0.01)``.

        Args:
            recorded: an earlier run's ``to_sanitized_dict()``, as its ``ule_config.json`` holds it.
        """
        asked = self.to_sanitized_dict()
        names = [name for name in DECIDES if name in recorded and recorded[name] != asked[name]]
        return [f"{name} {asked[name]} (was {recorded[name]})" for name in names]

    def variant(self) -> Variant:
        """The choices that one forward of :class:`ule_hf.pair.StudentTeacher` needs."""
        return Variant(
            attribution=self.attribution,
            score=self.score,
            grid=parse_grid(self.grid),
            map_sign=self.map_sign,
            map_norm=self.map_norm,
            term=self.term,
            coverage=self.coverage,
            control=self.control,
            student_loss=self.student_loss,
            gce_q=self.gce_q,
        )

    def _refuse_what_cannot_work(self) -> None:
        checkpointing_kwargs = (
            self.gradient_checkpointing_kwargs or {}
        )  # newer: activation_checkpointing_kwargs, kept equal
        refused = {
            "fp16": (self.fp16, "input gradients underflow in float16; use --bf16"),
            "torch_compile": (self.torch_compile, "compiled models have no second derivative; leave it out"),
            "fsdp": (bool(self.fsdp), "FSDP has no second derivative; use plain data parallelism"),
            "deepspeed": (bool(self.deepspeed), "it is untried with second derivatives; use plain data parallelism"),
            "label_smoothing_factor": (
                self.label_smoothing_factor > 0,
                "the losses of student and teacher do not use it; leave it out",
            ),
            "use_reentrant": (
                checkpointing_kwargs.get("use_reentrant", False),
                "reentrant activation checkpointing cannot be differentiated twice; set use_reentrant to false",
            ),
            "one process": (
                self.world_size == 1 and _started_processes() > 1,
                f"{_started_processes()} were started and none knows of the others; start them with accelerate launch "
                "--multi_gpu --num_processes N, or torchrun",
            ),
            "n_gpu": (
                self.n_gpu > 1,
                f"{self.n_gpu} GPUs in one process would use nn.DataParallel; start with accelerate launch",
            ),
        }
        for name, (given, reason) in refused.items():
            if given:
                raise UleError(f"{name} cannot be used with ULE: {reason}")


def _started_processes() -> int:
    """As many as the launcher (torchrun, Open MPI, MPICH, Slurm's srun) says; 1 where there is none."""
    names = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
    return max(int(os.environ.get(name, "1")) for name in names)
