"""What a training leaves behind: folders of models and card, and their pushes. Base of every trainer here."""

from __future__ import annotations

import json
import logging
import os
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperPreTrainedModel
from transformers.trainer_utils import HubStrategy

from ule_hf.backbones import load_weights, save_backbone
from ule_hf.card import (
    CONFIG_FILE,
    FROM_SCRATCH,
    LOCAL_WEIGHTS,
    RESULTS_FILE,
    CardFacts,
    card_metadata,
    write_card,
)
from ule_hf.checkpoints import written_whole
from ule_hf.errors import UleError
from ule_hf.hub import (
    check_card,
    commit,
    full_repo_id,
    open_repository,
    refuse_secrets,
    teacher_files,
)
from ule_hf.hub_errors import HubUnavailable
from ule_hf.watch import WatchedTrainer

logger = logging.getLogger(__name__)


class PublishingTrainer(WatchedTrainer):
    """A Trainer whose folders hold what is shipped at their root, and which pushes it.

    ``card`` is what the model card cannot know from the folder; ``results``, once known, is saved as ``results.json``.
    """

    card: CardFacts
    results: dict[str, Any] | None = None
    last_epoch: dict[str, Tensor] | None = None  # the weights that gave way to the best epoch's
    _push: Future | None = None
    _unpushed: str | None = None  # the checkpoint whose push failed or was skipped

    # ---- folders ----

    @staticmethod
    def folders(model: nn.Module) -> dict[str, PreTrainedModel]:
        """The image classifiers of ``model`` by their folder below the output folder; "" is what is shipped."""
        return {"": model}

    def _save(self, output_dir: str, state_dict: dict | None = None) -> None:
        """Teacher at the root, so that the folder is an ordinary model; student below. No pickled arguments: they
        would hold the Hub token."""
        if not self.args.should_save:
            return
        folder = Path(output_dir)
        for name, classifier in self.folders(self.model).items():
            save_backbone(classifier, self.processing_class, folder / name)
        _write_json(folder / CONFIG_FILE, self.args.to_sanitized_dict())
        if self.results is not None:
            _write_json(folder / RESULTS_FILE, self.results)
        write_card(folder, self.card)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Every model, strictly; the Trainer would take the teacher's weights for the pair's and only warn."""
        for name, classifier in self.folders(self.model if model is None else model).items():
            path = os.path.join(resume_from_checkpoint, name, "model.safetensors")
            if not os.path.isfile(path):
                raise UleError(f"{resume_from_checkpoint} is no checkpoint of this method: {path} is missing")
            load_weights(classifier, os.path.dirname(path))

    def _load_best_model(self) -> None:
        """The best epoch's student comes back together with its teacher. The last epoch's stay in memory: its folder
        may be deleted, or may not have been written."""
        self.last_epoch = {name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()}
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def create_model_card(self, **facts: Any) -> None:
        """The card of a teacher; the Trainer's own would call the pair a fine-tuned version of nothing.

        Args:
            facts: fields of :class:`ule_hf.card.CardFacts` to change, such as ``license``.
        """
        self.card = replace(self.card, **facts)
        if self.is_world_process_zero():
            write_card(self.args.output_dir, self.card)

    # ---- Hub ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Called before training: what would fail at every push is refused now. A Hub that does not answer is asked
        again at each push."""
        if not self.is_world_process_zero():
            return
        try:
            self._open_repository(token, private)
        except HubUnavailable as error:
            logger.warning("%s; training goes on, and the push is tried again at each save", error)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **facts: Any,
    ) -> str | None:
        """Save the teacher and push it in one commit; return the address of the commit (None on other processes).

        The student goes with it only with ``hub_push_student``. Always blocks.

        Args:
            facts: fields of :class:`ule_hf.card.CardFacts` to change, such as ``license``.

        Raises:
            UleError: the Hub refuses or does not answer; the saved folder can be pushed with ``ule-hf push``.
        """
        self.card = replace(self.card, **facts)
        self._wait_for_push()
        address = None
        if self.is_world_process_zero() and self.hub_model_id is None:
            self._open_repository(token, private)
        self.save_model(_internal_call=True)
        if self.is_world_process_zero():
            address = self._commit(commit_message or "End of training", token=token, revision=revision)
            self._unpushed = None
        return address

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The Trainer's would leave out card and configuration, and pickle the arguments with the token in them."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.args.hub_always_push:
            self._wait_for_push()
        self._unpushed = checkpoint_folder
        if self._push is None or self._push.done():
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            # a copy, because older checkpoints are deleted while the push may still read
            self._copy_to_output_dir(Path(checkpoint_folder))
            message = f"Training in progress, step {self.state.global_step}"
            self._push = HfApi().run_as_future(self._try_to_push, message, checkpoint_folder)

    def _finish_current_push(self) -> None:
        """Called at the end of training: waits, and tries once more what has failed or was skipped."""
        self._wait_for_push()
        if self._unpushed is None or not os.path.isdir(self._unpushed):
            return
        if error := self._error_of(self._copy_to_output_dir, Path(self._unpushed)):
            logger.warning("%s could not be copied to be pushed (%s)", self._unpushed, error)
            return
        self._try_to_push(f"End of training, step {self.state.global_step}", self._unpushed)

    def _try_to_push(self, message: str, checkpoint_folder: str) -> None:
        """Whatever happens, training goes on."""
        try:
            if self.hub_model_id is None:
                self._open_repository()
            self._commit(message, checkpoint_folder)
        except Exception as error:
            logger.warning("the push of %s failed: %s; it is tried again", checkpoint_folder, error)
        else:
            if self._unpushed == checkpoint_folder:
                self._unpushed = None

    def _wait_for_push(self) -> None:
        if self._push is not None:
            self._push.result()

    def _open_repository(self, token: str | None = None, private: bool | None = None) -> None:
        token = token or self.args.hub_token
        private = self.args.hub_private_repo if private is None else private
        repo_id = full_repo_id(self.args.hub_model_id or Path(self.args.output_dir).resolve().name, token)
        card = replace(self.card, model_id=repo_id)
        is_timm = isinstance(self.folders(self.model)[""], TimmWrapperPreTrainedModel)
        check_card(f"---\n{card_metadata(card, is_timm)}\n---\n")
        open_repository(repo_id, private=private, revision=self.args.hub_revision, token=token)
        self.card, self.hub_model_id = card, repo_id

    def _commit(
        self,
        message: str,
        checkpoint_folder: str | None = None,
        token: str | None = None,
        revision: str | None = None,
    ) -> str:
        output_dir = Path(self.args.output_dir)
        files = teacher_files(output_dir, with_student=self.args.hub_push_student)
        refuse_secrets(output_dir, files)
        paths = {name: output_dir / name for name in files}
        if checkpoint_folder and self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            checkpoint = Path(checkpoint_folder)  # whole, to resume from: with student and optimizer
            name = "last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
            inside = [path for path in checkpoint.rglob("*") if path.is_file()]
            paths |= {f"{name}/{path.relative_to(checkpoint).as_posix()}": path for path in inside}
        revision = revision or self.args.hub_revision
        return commit(self.hub_model_id, paths, message, revision=revision, token=token or self.args.hub_token)

    def _copy_to_output_dir(self, checkpoint: Path) -> None:
        """Makes the files that are pushed those of ``checkpoint``; results of other weights go, pictures stay."""
        output_dir = Path(self.args.output_dir)
        with written_whole(output_dir, vouching=RESULTS_FILE) as partial:
            for name in teacher_files(checkpoint, with_student=True):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(checkpoint / name, partial / name)
        write_card(output_dir)


def initial_weights(classifier: PreTrainedModel) -> str:
    """Where :func:`ule_hf.backbones.load_backbone` took the weights from, in the words of ``CardFacts``."""
    name = classifier.config.name_or_path
    if not name:
        return FROM_SCRATCH
    return LOCAL_WEIGHTS if os.path.exists(name) else name


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=path.name == CONFIG_FILE) + "\n", encoding="utf-8")
