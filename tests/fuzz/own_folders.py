"""Folders of the user's own images, in every state that the loader may meet, each with what it must make of it.

A case begins as a folder that is in order, in a random one of many shapes; then nothing, or one thing, is wrong.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from tests.fuzz.pictures import BAD, GOOD

#: Draws from a strategy.
Draw = Callable[[st.SearchStrategy], Any]

#: What a cell may hold: everything but control characters, half surrogate pairs and blanks around it.
TEXT = st.one_of(
    st.sampled_from(["nan", "NA", "None", "1", "01", "1.0", "-1", "a b", "a,b", 'say "hi"', "été", "鳥", "🐦", "#"]),
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=10),
).map(lambda text: normalize("NFC", text.strip())).filter(bool)  # fmt: skip
#: What a file's name may hold beside that: blanks around it, accents on their own, and a length that disks refuse.
STEM = st.one_of(
    TEXT, TEXT.map(lambda text: normalize("NFD", text)), TEXT.map(lambda text: f" {text} "), st.just("é" * 110)
).map(lambda text: text.replace("/", "-")).filter(lambda text: len(text.encode()) <= 220)  # fmt: skip
SPLITS = {"train": ["train", "Training", "0"], "validation": ["val", "valid", "DEV", "1"], "test": ["test", "2"]}
STRANGE = ("fifo", "loop", "broken link", "link out", "twin", "unreadable")


@dataclass
class Row:
    """One picture, as the loader must show it: its class, and the value of each attribute."""

    file: str
    label: str
    split: str
    attributes: dict[str, str]
    pixels: np.ndarray
    bad: bool = False

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # for hypothesis, which would print all pixels
        printer.text(f"Row({self.file!r}, {self.label!r}, {self.split!r}, {self.attributes!r})")


@dataclass
class Case:
    """What to load, and what to expect: ``rows``, or where ``fault`` says what is wrong, a refusal."""

    root: Path
    rows: list[Row]
    options: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    needs_every_class: bool = True

    def expected(self) -> list[Row] | None:
        """The rows that there must be, or None where the folder must be refused."""
        skips = self.options.get("skip_bad_images", False)
        if self.fault or (any(row.bad for row in self.rows) and not skips):
            return None
        good = [row for row in self.rows if not row.bad]
        labels = {row.label for row in self.rows}
        complete = all({row.label for row in good if row.split == split} == labels for split in SPLITS)
        return good if complete or not self.needs_every_class else None


def draw_case(draw: Draw, root: Path) -> Case:
    """Writes a folder with a metadata file, or one of class folders, into ``root``."""
    return draw(st.sampled_from([_with_metadata, _with_metadata, _with_metadata, _of_classes]))(draw, root)


def _names(draw: Draw, strategy: st.SearchStrategy = TEXT) -> list[str]:
    return draw(st.lists(strategy, min_size=2, max_size=3, unique_by=lambda text: normalize("NFC", text).casefold()))


def _picture(draw: Draw, file: Path) -> tuple[Path, np.ndarray]:
    """Writes a good picture; ``file`` is without its suffix."""
    suffix, content, pixels = GOOD[draw(st.sampled_from(sorted(GOOD)))](draw(st.integers(0, 999)))
    file = file.with_name(file.name + suffix)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file, pixels


def spoil_pictures(draw: Draw, case: Case) -> None:
    for row in draw(st.lists(st.sampled_from(case.rows), min_size=1, max_size=3, unique_by=lambda row: row.file)):
        (case.root / row.file).write_bytes(BAD[draw(st.sampled_from(sorted(BAD)))](draw(st.integers(0, 999))))
        row.bad = True


def replace_file(draw: Draw, case: Case, kinds: Sequence[str] = ("nothing", "folder", *STRANGE)) -> None:
    """Something else than a picture of its own where a picture should be."""
    row = draw(st.sampled_from(case.rows))
    path, outside = case.root / row.file, case.root.parent / "outside.png"
    content = path.read_bytes()
    path.unlink()
    kind = draw(st.sampled_from(kinds))
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "broken link":
        path.symlink_to("no such file")
    elif kind == "link out":
        outside.write_bytes(content)
        path.symlink_to(outside)
    elif kind == "twin":
        path.symlink_to(case.root / next(other.file for other in case.rows if other is not row))
    elif kind == "unreadable":
        assume(os.geteuid() != 0)  # who reads everything
        path.write_bytes(content)
        path.chmod(0)
        row.bad = True
        return
    case.fault = kind


# ---- a metadata file ----

#: A row's cells by column, in the order that they are written in.
Cells = list[dict[str, Any]]


def _with_metadata(draw: Draw, root: Path) -> Case:
    labels, places = _names(draw), _names(draw)
    rows: list[Row] = []
    for label in labels:
        for split in SPLITS:
            for _ in range(draw(st.integers(1, 2))):
                folder = draw(st.sampled_from(["", "a", "b c/d", "été"]))
                path, pixels = _picture(draw, root / folder / f"{len(rows)}{draw(STEM)}")
                place = {"place": draw(st.sampled_from(places))}
                rows.append(Row(path.relative_to(root).as_posix(), label, split, place, pixels))
    case = Case(root, draw(st.permutations(rows)), {"attribute_columns": ["place"]})
    case.options["skip_bad_images"] = draw(st.booleans())
    cells = [
        {
            "file_name": row.file,
            "label": draw(st.sampled_from([row.label, f" {row.label} ", normalize("NFD", row.label)])),
            "split": draw(st.sampled_from(SPLITS[row.split])),
            **row.attributes,
        }
        for row in case.rows
    ]
    if draw(st.booleans()):
        image_column, label_column = draw(st.lists(TEXT, min_size=2, max_size=2, unique=True))
        assume(not {image_column, label_column} & {"file_name", "label", "split", "place", "image"})
        cells = [{image_column: row.pop("file_name"), label_column: row.pop("label"), **row} for row in cells]
        case.options |= {"image_column": image_column, "label_column": label_column}
    for i, name in enumerate(draw(st.lists(TEXT, max_size=2, unique=True))):
        extra = f"extra {i} {name}"
        cells = [row | {extra: draw(st.one_of(st.just(""), st.text(max_size=5)))} for row in cells]
    wrong = draw(st.sampled_from(["", "", "", "pictures", "file", "cell", "table"]))
    if wrong == "pictures":
        spoil_pictures(draw, case)
    elif wrong == "file":
        replace_file(draw, case)
    elif wrong == "cell":
        _spoil_cell(draw, case, cells)
    if draw(st.booleans()):
        label = case.options.get("label_column", "label")
        case.fault = write_csv(draw, root / "metadata.csv", cells, label, wrong == "table") or case.fault
    else:
        _write_jsonl(draw, case, cells, wrong == "table")
    if draw(st.integers(0, 30)) == 0:
        (root / "metadata.csv").touch()
        (root / "metadata.jsonl").touch()
        case.fault = "both files"
    return case


def _spoil_cell(draw: Draw, case: Case, cells: Cells) -> None:
    row, other = draw(st.permutations(cells))[:2]
    image = case.options.get("image_column", "file_name")
    label = case.options.get("label_column", "label")
    (case.root.parent / "outside.png").write_bytes((case.root / other[image]).read_bytes())
    column, value = draw(
        st.sampled_from(
            [
                (image, "../outside.png"),
                (image, f"a/../../{case.root.name}/../outside.png"),
                (image, str(case.root.parent / "outside.png")),
                (image, str(case.root / other[image])),
                (image, other[image]),
                (image, f"./{other[image]}"),
                (image, f"a/../{other[image]}"),
                (image, "x" * 300 + ".png"),
                (image, "a/" * 3000 + "x.png"),
                (image, "."),
                (image, "nul\0.png"),
                (image, "two\nlines.png"),
                *((column, value) for column in (image, label, "split", "place") for value in ("", "  ", "\t")),
                *((column, value) for column in (label, "place") for value in ("a\nb", "a\rb", "\x1b[31mred", "\x85.")),
                *(("split", value) for value in ("holdout", "3", "1.0", "nan", "test train")),
            ]
        )
    )
    row[column] = value
    case.fault = f"{column} {value[:30]!r}"


def write_csv(draw: Draw, file: Path, cells: Cells, label: str, bad_table: bool = False, first: str = "") -> str:
    """``cells`` in any csv that holds them, the column ``first`` in front; or one that does not: what is wrong."""
    header = [name for name in [first] if name] + [n for n in draw(st.permutations(list(cells[0]))) if n != first]
    records = [[row[name] for name in header] for row in cells]
    kinds = ("no label", "two labels", "long row", "header only", "nothing", "open quote", "no utf-8")
    fault = draw(st.sampled_from(kinds)) if bad_table else ""
    if fault == "no label":
        position = header.index(label)
        header, *records = ([*row[:position], *row[position + 1 :]] for row in (header, *records))
    elif fault == "two labels":
        header, records = [*header, draw(st.sampled_from(header))], [[*row, "x"] for row in records]
    elif fault == "long row":
        draw(st.sampled_from(records)).append("one more")
    elif fault == "header only":
        records = []
    for _ in range(draw(st.integers(0, 2))):  # as spreadsheets leave them
        records.insert(draw(st.integers(0, len(records))), draw(st.sampled_from([[], [""] * len(header)])))
    text = io.StringIO(newline="")
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    if any(end in str(cell) for record in records for cell in record for end in "\r\n"):
        quoting = csv.QUOTE_ALL
    ends = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    csv.writer(text, quoting=quoting, lineterminator=ends).writerows([header, *records])
    content = text.getvalue()
    if fault == "nothing":
        content = draw(st.sampled_from(["", "\n", ends * 3]))
    elif fault == "open quote":
        content += '"'
    encodings = ["utf-16", "utf-16-le", "utf-32", "latin-1"] if fault == "no utf-8" else ["utf-8", "utf-8-sig"]
    encoding = draw(st.sampled_from(encodings))
    if encoding == "latin-1":
        content = content.encode("ascii", "replace").decode() + "é,"
    file.write_bytes(content.encode(encoding))
    return fault


def _write_jsonl(draw: Draw, case: Case, cells: Cells, bad_table: bool) -> None:
    unused = draw(st.sampled_from([{}, {"boxes": [[1, 2]], "more": {"a": None}}, {"score": float("nan")}]))
    lines = [json.dumps(row | unused, ensure_ascii=draw(st.booleans())) for row in cells]
    spoil = {
        "no object": lambda row: draw(st.sampled_from(["[1]", '[["a", "b"]]', "3", "null", "{", "{}}", "[" * 100_000])),
        "no label": lambda row: json.dumps({name: cell for name, cell in row.items() if name == "place"}),
        "label twice": lambda row: json.dumps(row)[:-1] + ', "place": "x"}',
        "no text": lambda row: json.dumps(row | {"place": draw(st.sampled_from([None, float("nan"), [1], {"a": 1}]))}),
        "half a pair": lambda row: json.dumps(row | {"place": "\ud83d"}),
        "no utf-8": None,
        "nothing": None,
    }
    if bad_table:
        case.fault = draw(st.sampled_from(sorted(spoil)))
        i = draw(st.integers(0, len(cells) - 1))
        if spoil[case.fault]:
            lines[i] = spoil[case.fault](cells[i])
    for _ in range(draw(st.integers(0, 2))):
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(["", "  "])))
    content = "" if case.fault == "nothing" else draw(st.sampled_from(["\n", "\r\n"])).join(lines)
    encoding = "utf-16" if case.fault == "no utf-8" else draw(st.sampled_from(["utf-8", "utf-8-sig"]))
    (case.root / "metadata.jsonl").write_bytes(content.encode(encoding))


# ---- class folders ----


def _of_classes(draw: Draw, root: Path) -> Case:
    labels = [name for name in _names(draw, STEM) if name.strip(". ")]
    assume(len(labels) > 1 and not any(name.startswith(".") for name in labels))
    spellings = {split: draw(st.sampled_from(names[:-1])) for split, names in SPLITS.items()}
    rows: list[Row] = []
    for label in labels:
        for split in SPLITS:
            for _ in range(draw(st.integers(1, 2))):
                folder = root / spellings[split] / label / draw(st.sampled_from(["", "deeper", "looks like a.png"]))
                path, pixels = _picture(draw, folder / f"{len(rows)}{draw(STEM)}")
                rows.append(Row(path.relative_to(root).as_posix(), normalize("NFC", label), split, {}, pixels))
    case = Case(root, sorted(rows, key=lambda row: row.file))
    for name in draw(st.lists(st.sampled_from(["notes.txt", ".hidden.png", "Thumbs.db"]), unique=True)):
        (root / spellings["train"] / labels[0] / name).write_bytes(b"no picture")
    case.options["skip_bad_images"] = draw(st.booleans())
    fault = draw(st.sampled_from([None, None, None, "pictures", "file", "folders"]))
    if fault == "pictures":
        spoil_pictures(draw, case)
    elif fault == "file":
        replace_file(draw, case, STRANGE)  # there, a picture that is not there is not missed
    elif fault == "folders":
        _spoil_folders(draw, case, root / spellings["test"], labels)
    return case


def _spoil_folders(draw: Draw, case: Case, test: Path, labels: list[str]) -> None:
    picture = (case.root / case.rows[0].file).read_bytes()
    case.fault = draw(
        st.sampled_from(
            ["no class", "beside", "empty class", "link", "no utf-8", "two lines", "columns", "a class less"]
        )
    )
    if case.fault == "no class":
        (test / "stray.png").write_bytes(picture)
    elif case.fault == "beside":
        (case.root / "extra" / labels[0]).mkdir(parents=True)
        (case.root / "extra" / labels[0] / "x.png").write_bytes(picture)
    elif case.fault == "empty class":
        (test / "an empty class").mkdir()
    elif case.fault == "link":
        (test / "a link").symlink_to(test / labels[0])
    elif case.fault == "no utf-8":
        name = draw(st.sampled_from([b"\xe9.png", b"\xff\xfe", b"\xed\xa0\x80.png"]))
        folder = os.fsencode(test / labels[0])
        if name.endswith(b".png"):
            (Path(os.fsdecode(os.path.join(folder, name)))).write_bytes(picture)
        else:
            os.mkdir(os.path.join(folder, name))
            (Path(os.fsdecode(os.path.join(folder, name, b"x.png")))).write_bytes(picture)
    elif case.fault == "two lines":
        (test / labels[0] / "two\nlines.png").write_bytes(picture)
    elif case.fault == "columns":
        case.options["label_column"] = "species"
    elif case.fault == "a class less":
        shutil.rmtree(test / labels[0])
