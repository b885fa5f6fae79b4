"""The page about a comparison: its figures are the file's, and nothing bad is hidden."""

from __future__ import annotations

import base64
import html
import json
import re
from html.parser import HTMLParser

import pytest

from tests.comparison.lines import VERSIONS, failed, finished, metrics
from ule_hf.cli import main as cli
from ule_hf.report.charts import bars, cost_against_gain, curves
from ule_hf.report.page import report
from ule_hf.report.runs import collect


class Page(HTMLParser):
    """Tables as lists of rows of cells, images, and every address that the page points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[dict[str, str]] = []
        self.addresses: list[str] = []
        self._cell: list[str] | None = None
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        elif tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th", "caption"):
            self._cell = []

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._rows[-1].append("".join(self._cell).replace("\u00a0", " "))
        elif tag == "caption":
            self._caption = "".join(self._cell)
        elif tag == "table":
            self.tables[self._caption] = self._rows

    def row(self, caption: str, method: str) -> list[str]:
        return next(row for row in self.tables[caption] if row[0] == method)


def with_curve(line: dict, worst: list[float]) -> dict:
    entries = [{"epoch": float(i + 1), "test": metrics(w), "student_test": metrics(w / 2)} for i, w in enumerate(worst)]
    return {**line, "curve": entries, "train_group_sizes": {"a, place=x": 7, "b, place=y": 93}}


LINES = [
    *(with_curve(finished("erm", seed, w), [0.1, w]) for seed, w in enumerate((0.50, 0.60, 0.70))),
    *(with_curve(finished("group_dro", seed, w), [0.2, w]) for seed, w in enumerate((0.80, 0.70, 0.90))),
    *(finished("constant", seed, w) for seed, w in enumerate((0.50, 0.60, 0.55))),
]


@pytest.fixture
def write(tmp_path):
    def write(lines: list, *options: str) -> tuple[str, Page]:
        (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        text = report([tmp_path / "runs.jsonl"], tmp_path / "report").read_text()
        return html.unescape(text), Page(text)

    return write


def test_figures_under_each_rule_labels_and_differences(write):
    _, page = write(LINES)
    overview = page.row("Worst group, by how the epoch was chosen", "group_dro")
    assert overview[1:4] == ["class and group", "class", "3 (0, 1, 2)"]
    assert overview[4:] == ["80.0 ± 10.0", "80.0 ± 10.0", "70.0 ± 10.0", "80.0 ± 10.0", "× 2.5"]
    by_class = page.row("Epoch chosen by validation's worst class (no group label)", "group_dro")
    # average, weighted, worst; minus ERM: 0.3, 0.1, 0.2; minus constant: 0.3, 0.1, 0.35; both groups
    assert by_class[1:5] == ["90.0 ± 0.0", "90.0 ± 0.0", "80.0 ± 10.0", "+20.0 [+10.0, +30.0]"]
    assert by_class[5:] == ["+25.0 [+10.0, +35.0]", "80.0 ± 10.0", "90.0 ± 0.0"]
    by_group = page.row("Epoch chosen by validation's worst group (takes group labels in validation)", "group_dro")
    assert by_group[3] == "70.0 ± 10.0"
    assert page.tables["Images of each group"][1:] == [["a, place=x", "7", "4"], ["b, place=y", "93", "6"]]


def test_nothing_comes_from_elsewhere_and_every_picture_has_words(write):
    text, page = write(LINES)
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "<script" not in text and "url(" not in text and "@import" not in text
    assert len(page.images) == 2 + 2 + 1  # groups, methods with curves, cost
    assert all(len(image["alt"]) > 30 for image in page.images)
    for image in page.images:
        kind, data = re.match(r"data:image/(svg\+xml|webp);base64,(.*)", image["src"]).groups()
        assert kind == "svg+xml" and base64.b64decode(data).startswith(b"<?xml")


@pytest.mark.slow
def test_a_phone_shows_the_whole_page_without_scrolling_sideways(tmp_path, write, browser):
    write(LINES)
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.get((tmp_path / "report" / "index.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    tables = "return [...document.querySelectorAll('.table')].map(t => t.scrollWidth - t.clientWidth)"
    assert max(browser.execute_script(tables)) == 0
    drawn = "return [...document.images].map(image => image.naturalWidth)"
    assert min(browser.execute_script(drawn)) > 0
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_failed_missing_and_broken_off_runs_are_seen_and_in_no_mean(write, tmp_path):
    lines = [*LINES[:-1], failed("constant", 2, "out of <memory>"), finished("jtt", 0, 0.4)]
    text, page = write(lines)
    assert "birds, constant, seed 2: failed: out of <memory>" in text
    assert "birds, jtt: not run or not finished with seed 1, 2" in text
    assert "9 finished runs, 1 failed" in text
    row = page.row("Epoch chosen by validation's worst class (no group label)", "constant")
    assert row[3:5] == ["55.0 ± 7.1", "+0.0 (of 2)"]
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"bed": "bir')
    assert "line 11 of runs.jsonl is broken off" in report([tmp_path / "runs.jsonl"], tmp_path / "again").read_text()


def test_what_one_comparison_has_is_not_missing_in_another(tmp_path):
    (tmp_path / "birds.jsonl").write_text("".join(json.dumps(finished("erm", s, 0.5)) + "\n" for s in range(3)))
    (tmp_path / "pets.jsonl").write_text(json.dumps(finished("lff", 7, 0.5, bed="pets")) + "\n")
    assert "not run or not finished" not in report([tmp_path], tmp_path / "out").read_text()


def test_runs_of_mixed_versions_are_kept_apart(write):
    newer = VERSIONS | {"torch": "2.16.0"}
    text, page = write([*LINES, finished("erm", 3, 0.99, versions=newer)])
    assert "mixed versions: 9 runs with python 3.11, torch 2.15.0; 1 runs with python 3.11, torch 2.16.0" in text
    rows = page.tables["Worst group, by how the epoch was chosen"]
    assert {row[0]: row[4] for row in rows if row[0].startswith("erm")} == {
        "erm (a)": "60.0 ± 10.0",
        "erm (b)": "99.0",
    }


def test_only_failures_are_a_page_too(write):
    text, page = write([failed("erm", 0, "no such folder")])
    assert "no such folder" in text and page.row("Worst group, by how the epoch was chosen", "erm")[3] == "none"


def test_output_folders_files_of_others_and_unfinished_runs(tmp_path):
    run = {**finished("ule", 0, 0.5)["run"], "dataset": "birds", "seed": 0, "command": None, "epochs": 2}
    run |= {"model": {"model": "test_resnet"}, "unlearning_weight": 1.0}
    done, unfinished = tmp_path / "outputs" / "done", tmp_path / "outputs" / "unfinished"
    for folder in (done, unfinished):
        folder.mkdir(parents=True)
        (folder / "ule_config.json").write_text("{}")
    saved = {f"test_{name}": value for name, value in metrics(0.25).items() if name != "groups"}
    results = {"teacher": saved | {"groups": metrics(0.25)["groups"]}, "run": run}
    (done / "results.json").write_text(json.dumps(results))
    (tmp_path / "outputs" / "speed.jsonl").write_text('{"seconds": 1}\n')
    text = report([tmp_path / "outputs"], tmp_path / "report").read_text()
    assert Page(text).row("The epoch that each run saved", "ule")[3] == "25.0"
    assert "speed.jsonl holds no runs of a comparison" in text
    assert "outputs/unfinished holds no results.json" in text


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("--dataset digits --shortcut half --correlation 0.9", "digits-half-0.9"),
        ("--dataset digit_pairs --shortcut two --correlation 1.0", "digit_pairs-two-1"),
        ("--dataset dominoes", "dominoes-0.95"),
        ("--dataset folder", "folder"),
    ],
)
def test_an_output_folder_s_bed_is_told_by_its_command(tmp_path, options, name):
    run = {"dataset": "", "command": f"recipes/train.py {options}", "seed": 0, "epochs": 1, "model": {"model": "m"}}
    (tmp_path / "results.json").write_text(json.dumps({"teacher": {"test_accuracy": 0.5}, "run": run}))
    assert [line["bed"] for line in collect([tmp_path]).lines] == [name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["empty"], "no run of a comparison is there"),
        (["speed.jsonl"], "speed.jsonl line 1 is no run of a comparison"),
        (["runs.jsonl", "--output", "speed.jsonl"], "--output speed.jsonl is a file"),
        (["runs.jsonl", "--models", "nowhere"], "--models nowhere: there is no such folder"),
        (["runs.jsonl", "--models", "empty"], "--models empty: holds no bed/method/seed"),
        (["runs.jsonl", "--pictures", "0"], "give 1 or more"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "speed.jsonl").write_text('{"seconds": 1}\n')
    (tmp_path / "runs.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    assert cli(["report", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "report").exists()


def svg(picture) -> str:
    return base64.b64decode(picture.uri.partition(",")[2]).decode()


def test_charts_have_their_figures_in_print():
    drawn = bars("land, at=sea (n = 9)", {"erm": {0: 0.5, 1: 0.7}, "jtt": {}})
    assert "60.0 ± 14.1" in svg(drawn) and "erm 60.0 ± 14.1; jtt –" in drawn.alt and "land, at=sea" in svg(drawn)
    cost = cost_against_gain([("erm", {0: 1.0}, {0: 0.0}), ("ule", {0: 2.0, 1: 4.0}, {0: 0.1, 1: 0.3})])
    assert "ule: × 3.0, +20.0" in svg(cost) and "ule: × 3.0, +20.0" in cost.alt
    assert cost_against_gain([("erm", {0: 1.0}, {0: 0.0}), ("ule", {}, {0: 0.1})]) is None


def test_curves_are_means_over_seeds_and_need_some_epochs():
    from ule_hf.comparison.table import gather

    rows, _ = gather(LINES)
    by_name = {row.name: row for row in rows}
    drawn = curves(by_name["group_dro"], by_name["erm"])
    assert drawn.alt.endswith("over 2 epochs, mean of 3 seeds: 20 % at first, 80 % at best, 80 % at the end.")
    assert "its student" in svg(drawn) and ">erm<" in svg(drawn)
    assert curves(by_name["constant"], by_name["erm"]) is None
