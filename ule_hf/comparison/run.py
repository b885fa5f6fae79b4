"""The runs of a comparison: each in a process of its own, each one line of a file, each only once."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from ule_hf.card import RESULTS_FILE
from ule_hf.comparison.plan import Cell, Options, arguments, portable
from ule_hf.errors import UleError

Line = dict[str, Any]
NAMES = {"bed", "method", "seed", "status", "error", "command"}


class RunFailed(Exception):
    """A run that came to no result; the text is its one line."""


class Stopped(Exception):
    """The comparison is being stopped, and the run with it: nothing is to be recorded."""


class Trainer:
    """Runs `recipes/train.py` in processes that end with this one's work, each on ``threads`` threads."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def train(self, options: Options, folder: Path) -> Line:
        """Train into ``folder``; returns what `results.json` says.

        Raises:
            RunFailed: the recipe refused or broke.
            Stopped: :meth:`stop` was called.
        """
        argv = [*arguments(options), "--output_dir", str(folder), "--disable_tqdm", "true"]
        command = [sys.executable, "-m", "ule_hf.cli", "train", *argv]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        with self._lock:
            if self._stopped:
                raise Stopped
            process = subprocess.Popen(
                command,
                # this package, not whatever ule_hf/ lies in the working directory
                env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a Ctrl-C is this process's to handle
            )
            self._running.add(process)
        _, errors = process.communicate()
        with self._lock:
            self._running.discard(process)
            if self._stopped:
                raise Stopped
        if process.returncode != 0:
            raise RunFailed(_reason(process.returncode, errors))
        return json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))

    def stop(self) -> None:
        """End what is running and let nothing begin."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _reason(returncode: int, errors: str) -> str:
    if returncode < 0:
        return f"ended by signal {-returncode}" + (" (out of memory?)" if returncode == -9 else "")
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or [f"exit status {returncode}"]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (said or lines)[-1]


def run_cell(cell: Cell, trainer: Trainer, keep_models: Path | None = None) -> Line:
    """One run from its options to the line that records it, finished or failed, without paths of this machine."""
    line: Line = {"bed": cell.bed, "method": cell.method, "seed": cell.seed, "status": "finished", "error": None}
    options = cell.options()
    line["command"] = command(options)
    line |= {"options": cell.recorded(), "threads": trainer.threads}
    if "error" in cell.search:
        return line | {"status": "failed", "error": cell.search["error"]}
    with _folder(cell, keep_models) as folder:
        paths = {str(folder): "output"} | {v: portable(v) for v in options.values() if portable(v) != v}
        try:
            results = trainer.train(options, folder)
        except RunFailed as error:
            return line | {"status": "failed", "error": _without(str(error), paths)}
        step_cost = _step_cost(folder)
    results = json.loads(_without(json.dumps(results), paths))
    results["run"] |= {"command": line["command"], "step_cost": step_cost}
    return line | results


def command(options: Options) -> str:
    """What to type to do a run again, where its data and weights lie in the working directory."""
    return shlex.join(["recipes/train.py", *arguments({name: portable(value) for name, value in options.items()})])


def _without(text: str, paths: dict[str, str]) -> str:
    for path, name in sorted(paths.items(), key=lambda item: -len(item[0])):
        text = text.replace(path, name)
    return text


def _step_cost(folder: Path) -> float | None:
    """A ULE step in plain steps, from the log of a run that measured it."""
    state = folder / "trainer_state.json"
    log = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
    return next((entry["step_cost"] for entry in log if "step_cost" in entry), None)


@contextmanager
def _folder(cell: Cell, keep_models: Path | None) -> Iterator[Path]:
    """Where a run may write: a temporary folder, or one that takes its name in ``keep_models`` once it is complete."""
    if keep_models is None:
        with tempfile.TemporaryDirectory(prefix="ule-compare-") as folder:
            yield Path(folder)
        return
    final = keep_models / cell.bed / cell.method / str(cell.seed)
    unfinished = final.with_name(f"{cell.seed}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    if not (unfinished / RESULTS_FILE).is_file():
        shutil.rmtree(unfinished)
        return
    for checkpoint in unfinished.rglob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)


def read(file: Path) -> tuple[list[Line], list[str]]:
    """The lines of a results file (none where there is no file), and a sentence for each that is broken off.

    Raises:
        UleError: the file holds something else.
    """
    lines, problems = [], []
    texts = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            problems.append(f"line {number} of {file.name} is broken off, and not counted")
            continue
        if not isinstance(line, dict) or not line.keys() >= NAMES:
            raise UleError(f"{file} line {number} is no run of a comparison; give another --output")
        lines.append(line)
    return lines, problems


def append(file: Path, line: Line) -> None:
    """Add a line, whole or not at all, whoever else is writing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")), file.open("ab+") as stream:
        stream.seek(0, os.SEEK_END)
        broken_off = stream.tell() > 0 and stream.seek(-1, os.SEEK_END) >= 0 and stream.read(1) != b"\n"
        stream.write((b"\n" if broken_off else b"") + json.dumps(line).encode() + b"\n")


def latest(lines: list[Line]) -> list[Line]:
    """Of several lines of one run with the same options, the last: a failed run that was repeated counts no more."""
    return list({(line["bed"], line["method"], line["seed"], _fingerprint(line)): line for line in lines}.values())


def _fingerprint(line: Line) -> str:
    return json.dumps(line.get("options"), sort_keys=True)


def missing(cells: list[Cell], lines: list[Line], retry_failed: bool = False) -> list[Cell]:
    """The cells that no line records with the same options (or only as failed, with ``retry_failed``)."""
    done = {
        (line["bed"], line["method"], line["seed"], _fingerprint(line))
        for line in latest(lines)
        if line["status"] == "finished" or not retry_failed
    }
    return [c for c in cells if (c.bed, c.method, c.seed, _fingerprint({"options": c.recorded()})) not in done]


def in_parallel(tasks: list[Callable[[], None]], processes: int, trainer: Trainer) -> None:
    """Call ``tasks``, ``processes`` at a time; an interruption or an error ends what is running, and is raised."""
    with ThreadPoolExecutor(processes) as pool:
        futures: list[Future[None]] = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            trainer.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
