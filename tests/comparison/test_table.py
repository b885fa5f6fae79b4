"""The Markdown: figures by hand, and every bad run in words and in no average."""

from __future__ import annotations

import pytest

from tests.comparison.lines import VERSIONS, failed, finished
from ule_hf.comparison.table import markdown

THREE = [
    *(finished("erm", seed, worst) for seed, worst in enumerate((0.50, 0.60, 0.70))),
    *(finished("group_dro", seed, worst) for seed, worst in enumerate((0.80, 0.70, 0.90))),
    *(finished("constant", seed, worst) for seed, worst in enumerate((0.50, 0.60, 0.70))),
]


def rows(text: str, method: str) -> list[list[str]]:
    """The cells of each table row of ``method``."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {method} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def problems(text: str) -> list[str]:
    return [line.removeprefix("* ") for line in text.splitlines() if line.startswith("* ")]


def test_both_rules_stand_side_by_side_with_the_labels_that_were_used():
    overview, without, last, with_groups, difference = rows(markdown(THREE), "group_dro")
    assert overview[:4] == ["group_dro", "class and group", "class", "3"]
    assert overview[4:] == ["80.0 ± 10.0", "80.0 ± 10.0", "80.0 ± 10.0", "70.0 ± 10.0", "× 2.5"]
    assert without[4:] == ["80.0 ± 10.0", "80.0 ± 10.0", "90.0 ± 0.0"] and with_groups[4:6] == ["70.0 ± 10.0"] * 2
    # 0.3, 0.1 and 0.2 more than ERM with the same seeds; the control happens to be as good as ERM
    assert last[1:] == without[1:]  # in these runs
    assert difference[1:] == ["+20.0 [+10.0, +30.0] (+30.0, +10.0, +20.0)"] * 6
    assert problems(markdown(THREE)) == []


def test_groups_are_shown_with_their_sizes():
    assert "| a, place=x (n = 4) | b, place=y (n = 6) |" in markdown(THREE)


def test_erm_is_not_compared_with_itself():
    assert rows(markdown(THREE), "erm")[-1][1:4] == ["–"] * 3


def test_failed_and_missing_runs_are_named_and_enter_no_mean():
    text = markdown([*THREE[:-1], failed("constant", 2, "out of memory"), finished("jtt", 0, 0.4)], [("sea", "erm", 0)])
    assert rows(text, "constant")[0][3:5] == ["2", "55.0 ± 7.1"]
    assert problems(text) == [
        "birds, constant, seed 2: failed: out of memory.",
        "sea, erm: not run or not finished with seed 0.",
        "birds, jtt: not run or not finished with seed 1, 2.",
    ]


def test_a_failed_run_that_was_repeated_counts_no_more():
    again = finished("erm", 0, 0.5)
    first = {**failed("erm", 0, "out of memory"), "options": again["options"]}
    assert problems(markdown([first, again])) == []


def test_a_bed_where_all_runs_failed_is_shown():
    text = markdown([failed("erm", 0, "no such folder", bed="sea")])
    assert rows(text, "erm")[0][3:5] == ["0", "–"] and "no such folder" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"versions": VERSIONS | {"torch": "2.16.0"}}, "versions torch 2.15.0 / 2.16.0"),
        ({"method_options": {"method": "erm", "learning_rate": 0.1}}, "options method learning_rate not set / 0.1"),
        ({"threads": 2}, "threads 1 / 2"),
        ({"run": {"trial_accuracy": 0.6}}, "preset trial_accuracy not set / 0.6"),  # of another version, say
    ],
)
def test_runs_that_differ_are_shown_apart(changes, said):
    text = markdown([*THREE[:2], finished("erm", 2, 0.9, **changes), *THREE[3:]])
    assert [rows(text, name)[0][3:5] for name in ("erm (a)", "erm (b)")] == [["2", "55.0 ± 7.1"], ["1", "90.0"]]
    assert f"birds, erm: runs that differ in more than the seed are not averaged: {said}." in problems(text)


def test_methods_under_different_conditions_are_not_compared():
    other = [finished("jtt", seed, 0.9, versions=VERSIONS | {"torch": "2.16.0"}) for seed in range(3)]
    text = markdown([*THREE, *other])
    assert rows(text, "jtt")[-1][1:] == ["–"] * 6 and rows(text, "jtt")[0][-1] == "–"
    assert "birds: methods ran under different conditions" in problems(text)[0]


def test_a_control_is_compared_with_its_own_preset():
    runs = list(THREE[:3])
    for preset, worst in (("paper", 0.5), ("path", 0.6)):
        options = {"method": "ule", "preset": preset}
        for seed in range(3):
            runs.append(finished(f"constant_{preset}", seed, worst, method_options=options | {"control": "constant"}))
            runs.append(finished(f"ule_{preset}", seed, 0.8, method_options=options))
    text = markdown(runs)
    assert rows(text, "ule_paper")[-1][4].startswith("+30.0") and rows(text, "ule_path")[-1][4].startswith("+20.0")


def test_two_seeds_have_differences_and_no_interval():
    text = markdown([line for line in THREE if line["seed"] < 2])
    assert rows(text, "group_dro")[-1][1] == "+20.0 (+30.0, +10.0)"
    assert "Fewer than 3 seeds have no interval" in text and "75 %" not in text
    assert "3 seeds 75 %" in markdown(THREE)


def test_without_group_labels_in_validation_there_is_no_rule_that_needs_them():
    runs = [finished("erm", seed, 0.5) for seed in range(3)]
    for run in runs:
        del run["selections"]["worst_group"]
    text = markdown(runs)
    assert rows(text, "erm")[0][4:8] == ["50.0 ± 0.0"] * 3 + ["–"] and "with group labels" not in text


def test_what_a_search_found_and_its_effort_is_shown_and_unequal_efforts_are_not_compared():
    runs = [*THREE[:3], *THREE[3:6]]
    searched = [
        run | {"options": run["options"] | {"search": effort(6 if run["method"] == "erm" else 9)}} for run in runs
    ]
    text = markdown(searched)
    assert "* erm: `--learning_rate 0.1`, the best of 6 trials with seed 0 by validation's worst class" in text
    assert "search trials 6 / 9" in problems(text)[-1] and rows(text, "group_dro")[-1][1] == "–"


def effort(trials: int) -> dict:
    return {"trials": trials, "rule": "worst_class", "seed": 0, "found": {"learning_rate": 0.1}}
