"""Hyperparameter search: for every method the same number of Optuna trials, judged on the validation split only."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from ule_hf.comparison.plan import RULES, Cell, Options, Search
from ule_hf.comparison.run import RunFailed, Trainer
from ule_hf.errors import UleError
from ule_hf.seeds import named_seed

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState
except ImportError as error:
    raise UleError("a search needs Optuna; install it with: pip install 'ule_hf[compare]'") from error

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)


def distribution(
    low: Any = None, high: Any = None, log: bool = False, choices: list[Any] | None = None
) -> BaseDistribution:
    """What a YAML file says of one option: ``choices``, or ``low`` and ``high``, on a logarithmic scale if ``log``.

    Raises:
        ValueError, TypeError: limits that are none.

    >>> distribution("1e-4", "1e-2", log=True)  # YAML 1.1 reads 1e-4 as a string
    FloatDistribution(high=0.01, log=True, low=0.0001, step=None)
    """
    if choices is not None:
        return CategoricalDistribution(choices)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def best_options(cell: Cell, search: Search, journal: Path, trainer: Trainer) -> Options:
    """Search the options of ``cell``'s method on its bed, or go on where a search stopped.

    Trials are kept in ``journal``, one study for each bed and method. A trial trains like any run, with the search's
    seed, and is worth the validation figure of the epoch that ``search.rule`` selects; its test figures are dropped
    unread. A trial that fails counts as one; one that was interrupted is repeated.

    Raises:
        RunFailed: no trial came to a result.
        UleError: ``journal`` holds a search with other options or another space.
    """
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    study = optuna.create_study(
        storage=storage, study_name=f"{cell.bed}/{cell.method}", direction="maximize", load_if_exists=True
    )
    space = search.space[cell.method]
    asked = {
        "options": cell.recorded(),
        "space": {name: repr(space[name]) for name in sorted(space)},
        "rule": search.rule,
        "seed": search.seed,
    }
    if study.user_attrs.get("asked", asked) != asked:
        raise UleError(
            f"{journal} holds a search for {study.study_name} with other options; move it away, or change --output"
        )
    study.set_user_attr("asked", asked)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # interrupted: it has no reason, and is not counted
    while (number := len(trials_of(study))) < search.trials:
        # a sampler of its own for each trial, so that a search that was interrupted draws what it would have drawn
        seed = named_seed(search.seed, "search", cell.bed, cell.method, number) % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = study.ask(space)
        try:
            study.tell(trial, _validate(cell, trial.params, search, trainer))
        except RunFailed as error:
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=TrialState.FAIL)
        logger.info("search %s: trial %d of %d", study.study_name, number + 1, search.trials)
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        reason = trials_of(study)[-1].user_attrs["error"]
        raise RunFailed(f"all {search.trials} trials of its search failed, the last one: {reason}")
    return study.best_params


def trials_of(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that count: with a value, or failed for a reason of their own."""
    return [t for t in study.get_trials() if t.state is TrialState.COMPLETE or "error" in t.user_attrs]


def _validate(cell: Cell, found: Options, search: Search, trainer: Trainer) -> float:
    options = cell.options() | found | {"seed": search.seed, "report_step_cost": False}
    with tempfile.TemporaryDirectory(prefix="ule-search-") as folder:
        results = trainer.train(options, Path(folder))
    if search.rule not in results["selections"]:
        raise RunFailed(f"rule {search.rule} needs group labels in validation, which this data lacks")
    return results["selections"][search.rule]["validation"][RULES[search.rule]]
