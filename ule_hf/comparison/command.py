"""What `recipes/compare.py` and `ule-hf compare` do."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from ule_hf.comparison.plan import Cell, Options, Plan, Search, portable, read_plan
from ule_hf.comparison.run import Line, RunFailed, Trainer, append, in_parallel, missing, read, run_cell
from ule_hf.comparison.table import markdown
from ule_hf.errors import UleError


def table(file: Path, output: Path) -> str:
    """The Markdown of what ``output`` holds of the comparison ``file``."""
    plan = read_plan(file)
    lines, problems = read(output)
    return _page(plan, output, lines, problems)


def compare(
    file: Path,
    output: Path,
    values: dict[str, str] | None = None,
    *,
    beds: list[str] | None = None,
    processes: int = 1,
    threads: int = 1,
    retry_failed: bool = False,
    keep_models: Path | None = None,
) -> int:
    """Run what ``output`` lacks of the comparison ``file``, and write the table beside it (``.md``).

    Args:
        values: of the placeholders ``${NAME}`` in the file.
        beds: run these only.
        processes: runs at a time, each a process with ``threads`` threads.
        retry_failed: also run what ``output`` records as failed.
        keep_models: a folder that keeps what each run saves, as ``bed/method/seed``.

    Returns:
        How many of the comparison's runs on these beds are failed ones.

    Raises:
        UleError: the file, an option, a path or the output; nothing has been run then.
    """
    if output.suffix != ".jsonl":
        raise UleError(f"--output {output} must end in .jsonl; the table goes into the .md beside it")
    if processes < 1 or threads < 1:
        raise UleError(f"--processes {processes} --threads {threads}: give 1 or more of each")
    for name, value in (values or {}).items():
        if Path(value).is_absolute() and not Path(value).exists():
            raise UleError(f"--set {name}={value}: there is no such file or folder")
    plan = read_plan(file)
    cells = plan.cells(values or {}, beds)
    lines, _ = read(output)
    plan.check(cells)

    trainer = Trainer(threads)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        if plan.search is not None:
            cells = _searched(plan.search, cells, output.with_suffix(".search.log"), processes, trainer)
        todo = missing(cells, lines, retry_failed)
        _say(f"{len(todo)} of {len(cells)} runs are to do")
        ended = count(1)

        def run(cell: Cell) -> None:
            line = run_cell(cell, trainer, keep_models)
            append(output, line)
            _say(f"[{next(ended)}/{len(todo)}] {cell.bed}, {cell.method}, seed {cell.seed}: {_outcome(line)}")

        in_parallel([partial(run, cell) for cell in todo], processes, trainer)
    finally:
        lines, problems = read(output)
        if lines:
            output.with_suffix(".md").write_text(_page(plan, output, lines, problems), encoding="utf-8")
    return len(missing(cells, lines, retry_failed=True))


def _page(plan: Plan, output: Path, lines: list[Line], problems: list[str]) -> str:
    made_by = shlex.join(["ule-hf", "compare", portable(str(plan.file)), "--output", portable(str(output))])
    return f"`{made_by}`\n\n{markdown(lines, plan.names(), problems)}"


def _searched(search: Search, cells: list[Cell], journal: Path, processes: int, trainer: Trainer) -> list[Cell]:
    """The cells with what the search found for their method on their bed, or with why it found nothing."""
    from ule_hf.comparison.search import best_options  # Optuna is an extra

    outcomes: dict[tuple[str, str], Options] = {}

    def run(cell: Cell) -> None:
        try:
            outcomes[cell.bed, cell.method] = {"found": best_options(cell, search, journal, trainer)}
        except RunFailed as error:
            outcomes[cell.bed, cell.method] = {"error": str(error)}
        _say(f"search, {cell.bed}, {cell.method}: {outcomes[cell.bed, cell.method]}")

    firsts = {(cell.bed, cell.method): cell for cell in reversed(cells)}
    in_parallel([partial(run, cell) for cell in firsts.values()], processes, trainer)
    effort = {"trials": search.trials, "rule": search.rule, "seed": search.seed}
    return [replace(cell, search=effort | outcomes[cell.bed, cell.method]) for cell in cells]


def _outcome(line: Line) -> str:
    if line["status"] != "finished":
        return f"{line['status']}: {line['error']}"
    worst = {rule: 100 * chosen["test"]["worst_group_accuracy"] for rule, chosen in line["selections"].items()}
    return (
        f"worst group {worst['last']:.1f} at the last epoch, {worst['worst_class']:.1f} at the one by worst class, "
        f"{line['run']['wall_seconds']:.0f} s"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
