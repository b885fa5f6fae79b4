"""The YAML file: what is read, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ule_hf.comparison.command import compare
from ule_hf.comparison.plan import Cell, read_plan
from ule_hf.errors import UleError

REPOSITORY = Path(__file__).parents[2]
CONTENT = {
    "beds": {"birds": {"dataset": "folder", "data_dir": "${data}/birds", "num_train_epochs": 3}},
    "methods": {"erm": {"method": "erm"}, "ule": {"preset": "path", "num_train_epochs": 9}},
    "seeds": [0, 1],
}
SEARCH = {"trials": 2, "space": {name: {"learning_rate": {"low": 0.1, "high": 1}} for name in ("erm", "ule")}}


def write(folder: Path, **changes) -> Path:
    file = folder / "some.yaml"
    file.write_text(yaml.safe_dump(CONTENT | changes))
    return file


def test_cells_and_their_commands(tmp_path):
    cells = read_plan(write(tmp_path)).cells({"data": "/mnt/data"})
    assert [(cell.method, cell.seed) for cell in cells] == [("erm", 0), ("ule", 0), ("erm", 1), ("ule", 1)]
    options = cells[1].options()
    assert options["data_dir"] == "/mnt/data/birds" and options["num_train_epochs"] == 9
    assert cells[1].recorded()["bed"]["data_dir"] == "birds"
    nothing = Cell("birds", "erm", 0, {"num_train_epochs": 3}, {"num_train_epochs": None}).options()
    assert "num_train_epochs" not in nothing  # null: the recipe's own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bed": {}}, "some.yaml: key 'bed' is unknown; there are beds, methods, seeds, search"),
        ({"methods": {}}, "methods must be names with options"),
        ({"methods": {"a/b": {}}}, "method name 'a/b'"),
        ({"methods": {"erm": ["method"]}}, "method 'erm' holds a list"),
        ({"methods": {"erm": {"seed": 3}}}, "method 'erm' sets seed"),
        ({"methods": {"erm": {"method": "emr"}}}, "some.yaml: method 'erm' on bed 'birds'.*emr"),
        ({"methods": {"erm": {"presets": "path"}}}, "method 'erm' on bed 'birds'.*did you mean --preset"),
        (
            {"beds": {"birds": {"data_dir": "${data}", "num_train_epochs": "x"}}},
            "method 'erm' on bed 'birds'.*num_train_epochs",
        ),
        ({"beds": {"birds": {"data_dir": "${date}"}}}, r"give --set date="),
        ({"beds": {"birds": {"data_dir": "here"}}}, r"nothing there is called \$\{data\}"),
        ({"seeds": [0, 0]}, r"seeds is \[0, 0\]"),
        ({"seeds": 3}, "seeds is 3"),
        ({"search": SEARCH | {"trials": {"erm": 2, "ule": 9}}}, "the same for every method"),
        ({"search": SEARCH | {"rule": "last"}}, "rule 'last' is unknown"),
        ({"search": {"trials": 2, "space": {"erm": SEARCH["space"]["erm"]}}}, "every method is searched.*'ule'"),
        ({"search": {"trials": 2, "space": SEARCH["space"] | {"ule": {"preset": {"choices": ["x"]}}}}}, "set already"),
        ({"search": {"trials": 2, "space": SEARCH["space"] | {"ule": {"lr": {"low": 1, "high": 0}}}}}, "lr:"),
        ({"search": {"trials": 2, "space": SEARCH["space"] | {"ule": {"gce_q": {"low": 0.5, "high": 2}}}}}, "gce_q"),
    ],
)
def test_bad_files_are_refused_before_anything_runs(tmp_path, changes, message):
    file = write(tmp_path, **changes)
    with pytest.raises(UleError, match=message):
        compare(file, tmp_path / "out.jsonl", {"data": str(tmp_path)})
    assert list(tmp_path.iterdir()) == [file]


def test_unreadable_files_are_one_line(tmp_path):
    (tmp_path / "broken.yaml").write_text("beds: [")
    for name in ("broken.yaml", "nowhere.yaml"):
        with pytest.raises(UleError, match=rf"{name} cannot be read") as error:
            read_plan(tmp_path / name)
        assert "\n" not in str(error.value)


def test_one_bed_needs_only_its_own_placeholders(tmp_path):
    plan = read_plan(write(tmp_path, beds=CONTENT["beds"] | {"digits": {"dataset": "digits"}}))
    assert {cell.bed for cell in plan.cells({}, ["digits"])} == {"digits"}
    with pytest.raises(UleError, match="no bed 'digit'; there are birds, digits"):
        plan.cells({}, ["digit"])


@pytest.mark.parametrize("file", sorted((REPOSITORY / "recipes" / "comparisons").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_comparisons_that_are_shipped_are_ones(file):
    plan = read_plan(file)
    plan.check(plan.cells({"data": "data"} if "${data}" in file.read_text(encoding="utf-8") else {}))
