"""One case: it is loaded as it was written, or refused in the package's own words. Nothing else is right."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.fuzz import benchmark_trees
from tests.fuzz.own_folders import Case, Draw, draw_case
from tests.fuzz.pictures import assert_shown
from ule_hf.data import load
from ule_hf.errors import UleError

CASES: dict[str, Callable[[Draw, Path], Case]] = {
    "folder": draw_case,
    "waterbirds": benchmark_trees.waterbirds_case,
    "celeba": benchmark_trees.celeba_case,
    "spawrious": benchmark_trees.spawrious_case,
    "urbancars": benchmark_trees.urbancars_case,
}


def check(loader: str, draw: Draw) -> str:
    """``loaded`` or ``refused``; an AssertionError, or whatever the loader raised, for everything else."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(folder, "cache"))
        root = Path(folder, "images")
        root.mkdir()
        with benchmark_trees.small_benchmarks():
            case = CASES[loader](draw, root)
            expected = case.expected()
            try:
                data = load(loader, data_dir=case.root, **case.options)
            except UleError as error:
                lines = str(error).splitlines()
                # the counts that are not the published ones follow as a table
                assert len(lines) == 1 or "this is not the published" in lines[0], f"several lines: {error!r}"
                assert expected is None, f"nothing is wrong, yet: {error}"
                return "refused"
            assert expected is not None, f"loaded in spite of: {case.fault or 'a bad picture'}"
            _compare(data, expected)
            return "loaded"


def _compare(data: datasets.DatasetDict, expected: list[Any]) -> None:
    found = [(split, row, data[split].features) for split in data for row in data[split]]
    assert Counter(row["image_id"] for _, row, _ in found) == Counter(row.file for row in expected)
    by_file = {row.file: row for row in expected}
    for split, row, features in found:
        wanted = by_file[row["image_id"]]
        assert split in wanted.split
        group = ", ".join([wanted.label, *(f"{name}={value}" for name, value in wanted.attributes.items())])
        for column, value in {"label": wanted.label, **wanted.attributes, "group": group}.items():
            assert features[column].names[row[column]] == value
        assert_shown(row["image"], wanted.pixels)
