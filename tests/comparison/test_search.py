"""Optuna's part: as many trials for every method, judged on validation, whatever stops or fails."""

from __future__ import annotations

import optuna
import pytest

from ule_hf.comparison.plan import Cell, Search
from ule_hf.comparison.run import RunFailed, Trainer
from ule_hf.comparison.search import best_options, distribution, trials_of
from ule_hf.errors import UleError

SPACE = {"learning_rate": distribution(0.0, 1.0), "epochs": distribution(choices=[1, 2])}
SEARCH = Search(5, {"erm": SPACE, "ule": SPACE}, seed=3)


class Unread(dict):
    """Test figures that must not be looked at."""

    def __getitem__(self, key):
        raise AssertionError("a search has read the test split")


class Formula(Trainer):
    """In the place of training: the validation figure is a formula of the options, best at a learning rate of 0.5."""

    def __init__(self, ends_at: dict[int, BaseException] | None = None) -> None:
        super().__init__()
        self.asked, self.ends_at = [], ends_at or {}

    def train(self, options, folder):
        self.asked.append(options)
        if len(self.asked) - 1 in self.ends_at:
            raise self.ends_at[len(self.asked) - 1]
        value = 1 - abs(options["learning_rate"] - 0.5)
        figures = {"validation": {"worst_class_accuracy": value, "accuracy": -value}, "test": Unread()}
        return {"selections": {"worst_class": figures, "average": figures}}


def cell(method: str) -> Cell:
    return Cell("birds", method, 0, {"data_dir": "/data/birds"}, {})


def studies(journal) -> dict[str, list]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    return {name: trials_of(optuna.load_study(study_name=name, storage=storage)) for name in storage_names(storage)}


def storage_names(storage) -> list[str]:
    return [summary.study_name for summary in optuna.get_all_study_summaries(storage)]


def test_every_method_has_the_same_number_of_trials_whatever_happens(tmp_path):
    journal = tmp_path / "search.log"
    failing = Formula({1: RunFailed("a loss that is not finite"), 3: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        best_options(cell("erm"), SEARCH, journal, failing)
    resumed = Formula()
    found = best_options(cell("erm"), SEARCH, journal, resumed)
    best_options(cell("ule"), SEARCH, journal, Formula())
    assert {name: len(trials) for name, trials in studies(journal).items()} == {"birds/erm": 5, "birds/ule": 5}
    assert len(resumed.asked) == 2  # two had a value, one had failed for a reason of its own
    # what the interruption cost is drawn again, not skipped
    assert resumed.asked[0] == failing.asked[3] and resumed.asked[0]["seed"] == 3
    values = {trial.value: trial.params for trial in studies(journal)["birds/erm"] if trial.value is not None}
    assert found == values[max(values)]


def test_a_finished_search_runs_nothing_and_finds_the_same(tmp_path):
    first = best_options(cell("erm"), SEARCH, tmp_path / "search.log", Formula())
    again = Formula()
    assert best_options(cell("erm"), SEARCH, tmp_path / "search.log", again) == first and not again.asked


def test_the_rule_decides(tmp_path):
    by_average = Search(5, SEARCH.space, rule="average", seed=3)
    rates = [
        best_options(cell("erm"), search, tmp_path / search.rule, Formula())["learning_rate"]
        for search in (SEARCH, by_average)
    ]
    assert abs(rates[0] - 0.5) < abs(rates[1] - 0.5)
    with pytest.raises(RunFailed, match=r"all 5 trials of its search failed.*needs group labels"):
        best_options(cell("erm"), Search(5, SEARCH.space, rule="worst_group"), tmp_path / "groups", Formula())


def test_a_search_with_other_options_is_refused(tmp_path):
    best_options(cell("erm"), SEARCH, tmp_path / "search.log", Formula())
    wider = Search(5, {"erm": {"learning_rate": distribution(0.0, 2.0)}}, seed=3)
    with pytest.raises(UleError, match="holds a search for birds/erm with other options"):
        best_options(cell("erm"), wider, tmp_path / "search.log", Formula())
