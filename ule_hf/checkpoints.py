"""Folders that neither a kill nor a full disk can spoil: written under another name, renamed once they are whole.

`WholeCheckpoints` is the base of :class:`ule_hf.publishing.PublishingTrainer`.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ule_hf.card import CONFIG_FILE, RESULTS_FILE, read_json
from ule_hf.errors import UleError

logger = logging.getLogger(__name__)

PARTIAL = "partial-"  # before the name of a folder that is being written or deleted
LOCK_FILE = ".lock"
# a student's weights are looked for when they are loaded
NEEDED_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors")
# what a disk that is full or read-only makes of Python's, safetensors' and torch's writing
CANNOT_WRITE = (OSError, SafetensorError, RuntimeError)
SECONDS_TO_SEE_A_FILE = 15  # of another machine, on network storage


def checkpoints_of(output_dir: str | os.PathLike) -> list[Path]:
    """The folders ``checkpoint-N`` in ``output_dir``, by N."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    return sorted((path for path in found if _step(path) >= 0), key=_step)


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The last checkpoint of ``output_dir`` from which training can go on; one that lacks a part is passed over."""
    for folder in reversed(checkpoints_of(output_dir)):
        missing = missing_parts(folder)
        if not missing:
            return str(folder)
        logger.warning("%s is no whole checkpoint (%s is missing) and is passed over", folder, missing[0])
    return None


def missing_parts(checkpoint: str | os.PathLike) -> list[str]:
    """Files without which training would go on from something else than where it stopped, and not say so."""
    folder = Path(checkpoint)
    missing = [name for name in NEEDED_FILES if not (folder / name).is_file()]
    return missing if any(folder.glob("rng_state*.pth")) else [*missing, "rng_state.pth"]


@contextmanager
def written_whole(folder: Path, vouching: str) -> Iterator[Path]:
    """A new folder to write in, whose files take the place of those in ``folder`` when the block ends well; when it
    does not, nothing has changed. The file ``vouching`` goes first and comes last: where it is, the others are of one
    save."""
    partial = folder / f"{PARTIAL}model"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        flush(partial)
        (folder / vouching).unlink(missing_ok=True)
        for path in sorted((p for p in partial.rglob("*") if p.is_file()), key=lambda p: p.name == vouching):
            target = folder / path.relative_to(partial)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flush(folder: Path) -> None:
    """To the disk, so that a power cut does not leave the new name with the old content's end. POSIX only."""
    if os.name != "posix":
        return
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class WholeCheckpoints(Trainer):
    """A Trainer whose checkpoints are whole or absent, which survives a save that fails, and is alone in its folder.

    ``failed_saves`` counts the checkpoints that could not be written.
    """

    failed_saves = 0
    _best_saved: tuple[float | None, int | None, str | None] = (None, None, None)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._locks: dict[Path, FileLock] = {}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with True for the last whole checkpoint.

        Raises:
            UleError: another run writes to ``output_dir``, it cannot be written, or not all processes see it; a
                checkpoint that lacks a part.
        """
        self.claim_output_dir()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise UleError(f"there is no checkpoint in {self.args.output_dir} to go on from")
        if resume_from_checkpoint:
            self._check_checkpoint(resume_from_checkpoint)
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def claim_output_dir(self, output_dir: str | None = None) -> None:
        """Locks ``output_dir``, by default its own, for as long as this trainer lives: two launches that do not know of
        one another would overwrite each other. Trainers of one process share the lock.

        Raises:
            UleError: another process holds it, the folder cannot be written, or not all processes see it.
        """
        folder = Path(output_dir or self.args.output_dir)
        if folder in self._locks:
            return
        lock, error = FileLock(folder / LOCK_FILE, is_singleton=True), None
        if self.args.should_save:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if lock.is_locked and not (folder / LOCK_FILE).exists():  # its folder was removed since
                    lock.release(force=True)
                lock.acquire(timeout=0)
                for partial in folder.glob(f"{PARTIAL}*"):  # of a run that was killed
                    shutil.rmtree(partial, ignore_errors=True)
            except Timeout:
                error = (
                    f"another run is writing to {folder}; give another --output_dir, or, if these were meant to be "
                    "processes of one run, start them with accelerate launch --multi_gpu --num_processes N"
                )
            except OSError as cause:
                error = f"output_dir {folder} cannot be written ({cause.strerror or cause}); give another"
        self._agree(error)
        self._agree(self._unseen(folder))
        self._locks[folder] = lock

    def _agree(self, error: str | None) -> None:
        """All processes raise the first error that one of them has."""
        errors = [e for e in gather_object([error]) if e is not None]
        if errors:
            raise UleError(errors[0])

    def _unseen(self, folder: Path) -> str | None:
        deadline = time.monotonic() + SECONDS_TO_SEE_A_FILE
        while not (folder / LOCK_FILE).exists():
            if time.monotonic() > deadline:
                return (
                    f"process {self.args.process_index} does not see the output_dir of process 0 ({folder}); give "
                    "a folder on storage that all machines share, or --save_on_each_node"
                )
            time.sleep(0.2)
        return None

    # ---- saving ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's parts in the Trainer's order, but under a name that is no checkpoint's until each process has
        written its part; only then is it the best one, pushed, and are older ones deleted. A disk that is full or
        read-only costs this checkpoint, not the run."""
        if trial is None:
            self.store_flos()
        run_dir = Path(self._get_output_dir(trial))
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        partial = folder.with_name(PARTIAL + folder.name)
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder)
        error = self._error_of(self._write_checkpoint, partial)
        errors = [e for e in gather_object([error]) if e]
        if not errors and self.args.should_save:
            error = self._error_of(_rename, partial, folder)
        errors = errors or [e for e in gather_object([error]) if e]
        if errors:
            self._forget_checkpoint(partial, errors[0])
            return
        self._best_saved = self._best_record()
        if self.args.push_to_hub and (error := self._error_of(self._push_from_checkpoint, str(folder))):
            logger.warning("%s could not be copied to be pushed (%s); training goes on", folder, error)
        if self.args.should_save and (error := self._error_of(self._rotate, folder)):
            logger.warning("the checkpoints before %s could not be deleted (%s); training goes on", folder, error)

    def _write_checkpoint(self, folder: Path) -> None:
        super().save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            self.state.stateful_callbacks = self._callback_states()
            self.state.save_to_json(str(folder / "trainer_state.json"))
            flush(folder)

    def _callback_states(self) -> dict[str, Any]:
        """By class; a list where several are of one."""
        states: dict[str, list[dict]] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        return {name: found[0] if len(found) == 1 else found for name, found in states.items()}

    def _error_of(self, write: Any, *args: Any) -> str | None:
        try:
            write(*args)
        except CANNOT_WRITE as error:
            return self._words(error)
        return None

    def _words(self, error: BaseException) -> str:
        """torch says "unexpected pos 576 vs 534" where a disk is full."""
        line = (str(error) or type(error).__name__).splitlines()[0]
        if not os.path.isdir(self.args.output_dir):
            return line
        return f"{line}; {shutil.disk_usage(self.args.output_dir).free / 1e6:.1f} MB are free there"

    def _forget_checkpoint(self, partial: Path, error: str) -> None:
        """As if it had never been tried: the best epoch is the best that can be loaded."""
        self.failed_saves += 1
        if self.state.best_global_step == self.state.global_step:
            self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint = self._best_saved
        shutil.rmtree(partial, ignore_errors=True)
        if self.is_world_process_zero():
            last = last_checkpoint(self.args.output_dir)
            kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            logger.warning(
                "the checkpoint of step %d could not be saved (%s); training goes on, %s",
                *(self.state.global_step, error, kept),
            )

    def _rotate(self, newest: Path) -> None:
        """``save_total_limit``: the newest and the best stay; checkpoints of a later step, which an earlier run left
        when this one resumed before them, go first, then the oldest."""
        if not self.args.save_total_limit or self.args.save_total_limit < 0:
            return
        checkpoints = checkpoints_of(newest.parent)
        kept = {newest.name, Path(self.state.best_model_checkpoint or newest).name}
        later = [c for c in checkpoints if _step(c) > _step(newest)]
        deletable = [c for c in later + [c for c in checkpoints if c not in later] if c.name not in kept]
        for checkpoint in deletable[: max(0, len(checkpoints) - max(self.args.save_total_limit, len(kept)))]:
            _delete(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, whole or not at all.

        Raises:
            UleError: the folder cannot be written; what it held is still there.
        """
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            with self._final_save(folder), written_whole(folder, vouching=RESULTS_FILE) as partial:
                super().save_model(str(partial), _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_state(self) -> None:
        """As the Trainer's.

        Raises:
            UleError: ``output_dir`` cannot be written.
        """
        with self._final_save(Path(self.args.output_dir)):
            super().save_state()

    @contextmanager
    def _final_save(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except CANNOT_WRITE as error:
            last = last_checkpoint(self.args.output_dir)
            way = f"go on with --resume_from_checkpoint {last}" if last else "no checkpoint is left"
            raise UleError(
                f"the model could not be saved in {folder} ({self._words(error)}); make room and {way}"
            ) from error

    # ---- going on ----

    def _check_checkpoint(self, checkpoint: str) -> None:
        missing = missing_parts(checkpoint)
        if missing:
            raise UleError(
                f"{checkpoint} is no whole checkpoint to go on from: {missing[0]} is missing; name another, or latest"
            )
        later = [path.name for path in checkpoints_of(self.args.output_dir) if _step(path) > _step(Path(checkpoint))]
        if later and self.is_world_process_zero():
            logger.warning("%s of an earlier run are later than %s; the new ones replace them", later, checkpoint)
        config = Path(checkpoint, CONFIG_FILE)
        changes = self.args.changes_since(read_json(config)) if config.is_file() else []
        if changes and self.is_world_process_zero():
            logger.warning(
                "%s was trained with other options, and goes on with %s: not the run that it would have been",
                *(checkpoint, ", ".join(changes)),
            )
        written_by = len(list(Path(checkpoint).glob("rng_state*.pth")))
        if written_by != self.args.world_size and self.is_world_process_zero():
            logger.warning(
                "%s was written by %d processes and goes on with %d: not bit for bit, because the order of the images "
                "differs",
                *(checkpoint, written_by, self.args.world_size),
            )

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer forgets the best epoch when the folder has been moved or named from another place."""
        result = super()._init_training_state(*args, **kwargs)
        if self.state.best_global_step and self.state.best_model_checkpoint is None:
            best = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        self._best_saved = self._best_record()
        return result

    def _best_record(self) -> tuple[float | None, int | None, str | None]:
        state: TrainerState = self.state
        return state.best_metric, state.best_global_step, state.best_model_checkpoint


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdigit() else -1


def _rename(partial: Path, folder: Path) -> None:
    if folder.exists():  # of a run before this one
        _delete(folder)
    partial.rename(folder)


def _delete(checkpoint: Path) -> None:
    """Renamed first: half a folder is never a checkpoint."""
    doomed = checkpoint.with_name(f"{PARTIAL}old-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
