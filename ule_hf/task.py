"""What a method is given to train on, and the one way in which every method does."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import BaseImageProcessor, PreTrainedModel, ProgressCallback, TrainerCallback, TrainerState

from ule_hf.arguments import MethodArguments, ModelArguments
from ule_hf.backbones import freeze_backbone, load_backbone
from ule_hf.card import CONFIG_FILE, FROM_SCRATCH, RESULTS_FILE, CardFacts, read_json
from ule_hf.checkpoints import last_checkpoint
from ule_hf.classifier_trainer import ClassifierTrainer, column
from ule_hf.config import ULEConfig
from ule_hf.data.transforms import EvalTransform, TrainTransform
from ule_hf.errors import UleError
from ule_hf.metrics import group_sizes
from ule_hf.progress import EpochLines
from ule_hf.publishing import initial_weights
from ule_hf.seeds import named_seed

FIRST_STAGE = "first_stage"
STATE_FILE = "trainer_state.json"


@dataclass
class Task:
    """The data, the initial model and the options of a run.

    Args:
        data: ``train``, ``validation`` and ``test``, images as they are stored.
        transforms: of training and of evaluation.
        checkpoint: the checkpoint of the last stage to go on from.
        resuming: whether finished work in the output folder is kept.
    """

    data: DatasetDict
    transforms: tuple[TrainTransform, EvalTransform]
    processor: BaseImageProcessor
    model_args: ModelArguments
    method_args: MethodArguments
    args: ULEConfig
    card: CardFacts
    checkpoint: str | None = None
    resuming: bool = False
    #: What the first stage, where a method has one, has logged.
    first_stage_log: list[dict] = field(default_factory=list)

    def classifier(self) -> PreTrainedModel:
        """The initial model, the same at every call: that of ULE's teacher."""
        return load_initial(self.model_args, self.labels, self.args.seed, "teacher")[0]

    @property
    def labels(self) -> list[str]:
        return self.data["train"].features["label"].names

    @property
    def group_sizes(self) -> list[int]:
        """Training images of each group."""
        train = self.data["train"]
        return group_sizes(column(train, "group"), train.features["group"].num_classes).tolist()

    def for_evaluation(self, dataset: Dataset) -> Dataset:
        """``dataset`` with evaluation's transform."""
        return dataset.with_transform(self.transforms[1])

    def trainer(
        self,
        kind: type[ClassifierTrainer],
        model: torch.nn.Module,
        train: Dataset | None = None,
        args: ULEConfig | None = None,
        **options: Any,
    ) -> ClassifierTrainer:
        """A trainer of class ``kind`` for ``model`` on ``train``, by default the training split."""
        trainer = kind(
            model=model,
            args=args or self.args,
            train_dataset=(self.data["train"] if train is None else train).with_transform(self.transforms[0]),
            eval_dataset=self.for_evaluation(self.data["validation"]),
            processing_class=self.processor,
            train_group_sizes=self.group_sizes,
            card=self.card,
            **options,
        )
        if not self.args.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(EpochLines)
        if self.method_args.evaluate_test_each_epoch:
            trainer.add_callback(_TestEachEpoch(trainer, self.for_evaluation(self.data["test"])))
        return trainer

    def train(self, trainer: ClassifierTrainer) -> ClassifierTrainer:
        """Train the last stage, from ``checkpoint`` where there is one."""
        self._train(trainer, self.checkpoint)
        return trainer

    def first_stage(self, train: Dataset | None = None, **changes: Any) -> ClassifierTrainer:
        """Train the initial model plainly in a folder of its own; taken from there where a run is resumed.

        Args:
            train: by default the training split.
            changes: to the options, such as ``num_train_epochs``.

        Raises:
            UleError: what is there was trained with other options.
        """
        args = copy.copy(self.args)
        folder = Path(self.args.output_dir) / FIRST_STAGE
        changes |= {"output_dir": str(folder), "push_to_hub": False, "resume_from_checkpoint": None}
        for name, value in changes.items():
            setattr(args, name, value)
        trainer = self.trainer(ClassifierTrainer, self.classifier(), train, args)
        if self.resuming and (folder / STATE_FILE).is_file():
            if changes := args.changes_since(read_json(folder / CONFIG_FILE)):
                raise UleError(
                    f"{folder} is finished, and was trained with other options: asked for are {', '.join(changes)}; "
                    "give the old ones, or begin a new run with --overwrite_output_dir"
                )
            trainer._load_from_checkpoint(str(folder))
            trainer.state = TrainerState.load_from_json(str(folder / STATE_FILE))
        else:
            self._train(trainer, last_checkpoint(folder) if self.resuming else None)
            trainer.save_model(_internal_call=True)
            trainer.save_state()  # written last: it says that the stage is finished
        self.first_stage_log = trainer.state.log_history
        return trainer

    def training_logits(self, trainer: ClassifierTrainer) -> tuple[np.ndarray, np.ndarray]:
        """What the trainer's model makes of every training image as evaluation sees it, ``[N, K]``; labels ``[N]``."""
        train = self.data["train"]
        return trainer.predict(self.for_evaluation(train)).predictions, column(train, "label")

    def _train(self, trainer: ClassifierTrainer, checkpoint: str | None) -> None:
        trainer.claim_output_dir(self.args.output_dir)
        if not self.resuming:
            if trainer.is_world_process_zero():
                for path in earlier_run(Path(self.args.output_dir)):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            trainer.accelerator.wait_for_everyone()
            self.resuming = True  # what is there from now on is this run's
        trainer.train(resume_from_checkpoint=checkpoint)


def load_initial(
    model_args: ModelArguments, labels: list[str], seed: int, name: str
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """The backbone of ``model_args``, what is new in it drawn from a seed of its own ``name``; and its processor.

    Raises:
        UleError: bad input, or a backbone to be frozen that has not learnt anything.
    """
    classifier, processor = load_backbone(
        model_args.model,
        label_names=labels,
        seed=named_seed(seed, name),
        image_size=model_args.image_size,
        model_args=model_args.parsed_model_args(),
        checkpoint_path=model_args.checkpoint_path,
    )
    if model_args.freeze_backbone:
        if initial_weights(classifier) == FROM_SCRATCH:
            raise UleError(
                f"freeze_backbone: {model_args.model} starts from scratch, and what is frozen would stay random; give "
                "pretrained weights (a Hub id, a folder or --checkpoint_path), or leave freeze_backbone out"
            )
        freeze_backbone(classifier)
    return classifier, processor


def earlier_run(output_dir: Path) -> Iterable[Path]:
    """What an earlier run has left in ``output_dir``."""
    names = ("model.safetensors", "student", "biased", FIRST_STAGE, RESULTS_FILE, "checkpoint-*")
    return [path for name in names for path in output_dir.glob(name)]


class _TestEachEpoch(TrainerCallback):
    """Evaluates the test split after each validation: for curves and selection rules, never for training."""

    def __init__(self, trainer: ClassifierTrainer, test: Dataset) -> None:
        self.trainer = trainer
        self.test = test

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if "eval_loss" not in metrics:  # it is the evaluation of the test split itself
            return
        with torch.random.fork_rng(devices=[]):  # a data loader draws a seed: the run would differ from one without
            self.trainer.evaluate(self.test, metric_key_prefix="test")
