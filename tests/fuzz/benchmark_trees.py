"""The four benchmarks' official layouts, small, in every state that their loaders may meet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.data.copies import ROWS, SIZES, published_of
from tests.fuzz.own_folders import STRANGE, Case, Draw, Row, replace_file, spoil_pictures, write_csv
from tests.fuzz.pictures import BAD, GOOD, noise
from ule_hf.data import celeba, spawrious, urbancars, waterbirds

#: Pictures of 7 x 5 pixels, which is what the small benchmarks have.
FITTING = sorted(kind for kind, make in GOOD.items() if make(0)[2].shape == (5, 7, 3))
#: Those of one tree, in turn.
KINDS = st.lists(st.sampled_from(FITTING), min_size=1, max_size=5)
#: What a file's name may begin with.
PREFIX = st.sampled_from(["", "é", " ", "a b", ",", "e\u0301"])


@contextmanager
def small_benchmarks() -> Iterator[None]:
    """Published counts and sizes of pictures are those of the trees below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waterbirds, "PUBLISHED", published_of(waterbirds.GROUPS))
        patch.setattr(celeba, "PUBLISHED_SIZES", SIZES)
        patch.setattr(spawrious, "FOLDER_SIZE", 6)
        patch.setattr(spawrious, "_SPURIOUS", (5, 5))
        patch.setattr(spawrious, "PUBLISHED", {name: spawrious._published(name) for name in spawrious.COMBINATIONS})
        patch.setattr(urbancars, "IMAGES_PER_CLASS", {"train": 8, "validation": 4, "test": 4})
        patch.setattr(urbancars, "PUBLISHED", {name: urbancars._published(name) for name in urbancars.CORRELATIONS})
        for module in (celeba, spawrious, urbancars):
            patch.setattr(module, "IMAGE_SIZE", (7, 5))
        yield


def _write_picture(kinds: list[str], file: Path, seed: int) -> np.ndarray:
    file.parent.mkdir(parents=True, exist_ok=True)
    _, content, pixels = GOOD[kinds[seed % len(kinds)]](seed)
    file.write_bytes(content)
    return pixels


def _spoil(draw: Draw, case: Case, spoil_metadata: Callable[[], None] | None) -> str:
    """Nothing, a picture, a file, or the metadata; which of them."""
    kinds = ["", "", "", "pictures", "file", *(["metadata", "metadata"] if spoil_metadata else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "pictures":
        spoil_pictures(draw, case)
    elif kind == "file":
        replace_file(draw, case, ("nothing", "folder", *STRANGE) if spoil_metadata else STRANGE)
    elif kind == "metadata":
        spoil_metadata()
    return kind


def waterbirds_case(draw: Draw, root: Path) -> Case:
    rows, cells, kinds = [], [], draw(KINDS)
    for i, (split, label, place) in enumerate(ROWS):
        file = f"{i % 3:03d}.Bird/{draw(PREFIX)}{i}.jpg"
        pixels = _write_picture(kinds, root / file, i)
        attributes = {"place": waterbirds.PLACES[place]}
        rows.append(Row(file, waterbirds.LABELS[label], list(SIZES)[split], attributes, pixels))
        cells.append({"img_id": i, "img_filename": file, "y": label, "split": split, "place": place})
    case = Case(root, rows, {"skip_bad_images": draw(st.booleans())}, needs_every_class=False)
    values = {column: ["", "3", "1.0", "-1", "nan", "a\nb", " 1"] for column in ("y", "split", "place")}
    values["img_filename"] = ["", "../x.jpg", "/etc/hostname", rows[0].file, "no\0.jpg", "two\nlines.jpg", "x" * 300]
    bad_table = _spoil(draw, case, lambda: _spoil_cell(draw, case, cells, values)) == "" and draw(st.booleans())
    case.fault = write_csv(draw, root / "metadata.csv", cells, "y", bad_table) or case.fault
    return case


def _spoil_cell(draw: Draw, case: Case, cells: list[dict[str, Any]], values: dict[str, list[str]]) -> None:
    column = draw(st.sampled_from(sorted(values)))
    value = draw(st.sampled_from(values[column]))
    draw(st.sampled_from(cells[1:]))[column] = value
    case.fault = f"{column} {value[:20]!r}"


def celeba_case(draw: Draw, root: Path) -> Case:
    rows, attributes, partition, kinds = [], [], [], draw(KINDS)
    as_csv, negative = draw(st.booleans()), draw(st.sampled_from([-1, 0]))
    for i, (split, label, male) in enumerate(ROWS):
        file = f"{i + 1:06d}{draw(st.sampled_from(['.jpg', '', '.png']))}"
        pixels = _write_picture(kinds, root / "img_align_celeba" / file, i)
        values = {"Male": ["no", "yes"][male]}
        rows.append(Row(file, ["not Blond_Hair", "Blond_Hair"][label], list(SIZES)[split], values, pixels))
        flags = {"Blond_Hair": label, "Male": male, "Young": 1}
        attributes.append({"image_id": file, **{name: 1 if flag else negative for name, flag in flags.items()}})
        partition.append({"image_id": file, "partition": split})
    case = Case(root / "img_align_celeba", rows, {"skip_bad_images": draw(st.booleans())}, needs_every_class=False)
    flaws = {name: ["", "2", "x", "0.5", "nan"] for name in ("Blond_Hair", "Male")}
    names = ["", "../x.jpg", "/etc/hostname", rows[0].file, "gone.jpg"]
    bad_attributes = {**flaws, "image_id": names}
    bad_partition = {"partition": ["", "3", "x", "-1"], "image_id": names}

    def spoil() -> None:
        if draw(st.booleans()):
            _spoil_cell(draw, case, attributes, bad_attributes)
        else:
            _spoil_cell(draw, case, partition, bad_partition)

    bad_table = _spoil(draw, case, spoil) == "" and draw(st.booleans())
    if as_csv:
        file = root / "list_attr_celeba.csv"
        case.fault = write_csv(draw, file, attributes, "Male", bad_table, "image_id") or case.fault
        write_csv(draw, root / "list_eval_partition.csv", partition, "partition", first="image_id")
    else:
        _write_text(draw, root / "list_attr_celeba.txt", attributes, header=True)
        fault = _write_text(draw, root / "list_eval_partition.txt", partition, header=False, bad=bad_table)
        case.fault = fault or case.fault
    case.root = root
    return case


def _write_text(draw: Draw, file: Path, cells: list[dict[str, Any]], header: bool, bad: bool = False) -> str:
    records = [[str(cell) for cell in row.values()] for row in cells]
    fault = draw(st.sampled_from(["long row", "short row", "row twice", "row less", "no utf-8"])) if bad else ""
    position = draw(st.integers(1, len(records) - 1))
    if fault == "long row":
        records[position].append("1")
    elif fault == "short row":
        records[position].pop()
    elif fault == "row twice":
        records.append(records[position])
    elif fault == "row less":
        del records[position]
    gap, end = draw(st.sampled_from([" ", "  ", "\t"])), draw(st.sampled_from(["\n", "\r\n", " \n"]))
    lines = [gap.join(row) for row in records]
    lines = [str(len(cells)), " ".join(list(cells[0])[1:]), *lines] if header else lines
    encoding = "utf-16" if fault == "no utf-8" else draw(st.sampled_from(["utf-8", "utf-8-sig"]))
    file.write_bytes((end.join(lines) + end).encode(encoding))
    return fault


def spawrious_case(draw: Draw, root: Path) -> Case:
    combination = draw(st.sampled_from(["o2o_hard", "m2m_easy"]))
    suffixes = st.sampled_from([".png", ".jpg", ".jpeg"])
    rows, files, pixels, kinds = [], {}, {}, draw(KINDS)
    for cell in spawrious.cells(combination):
        folder = f"{cell.folder}/{cell.location}/{cell.breed}"
        if folder not in files:
            names = [
                f"{draw(st.sampled_from(['', 'é', ' ']))}{i}{draw(suffixes)}" for i in range(spawrious.FOLDER_SIZE)
            ]
            files[folder] = sorted(f"{folder}/{name}" for name in names)
            pixels |= {
                file: _write_picture(kinds, root / file, len(pixels) + i) for i, file in enumerate(files[folder])
            }
        split = "test" if cell.environment == "test" else "train or validation"
        values = {"location": cell.location}
        rows += [Row(file, cell.breed, split, values, pixels[file]) for file in files[folder][: cell.count]]
    options = {"combination": combination, "skip_bad_images": draw(st.booleans())}
    case = Case(root, rows, options, needs_every_class=False)
    _spoil_tree(draw, case)
    return case


def urbancars_case(draw: Draw, root: Path) -> Case:
    correlation = draw(st.sampled_from(urbancars.CORRELATIONS))
    rows, kinds, marks = [], draw(KINDS), draw(st.lists(PREFIX, min_size=2, max_size=2))
    for split, folder in urbancars.FOLDERS.items():
        share = correlation if split == "train" else "0.5"
        sizes = urbancars.group_sizes(urbancars.IMAGES_PER_CLASS[split], float(share))
        for (label, bg, thing), size in zip(product(urbancars.LABELS, repeat=3), sizes.values(), strict=True):
            group = f"{urbancars.folder_of(share)}/{folder}/obj-{label}_bg-{bg}_co_occur_obj-{thing}"
            for i in range(size):
                file = f"{group}/{marks[i % 2]}{i:03d}.jpg"
                pixels = _write_picture(kinds, root / file, len(rows))
                rows.append(Row(file, label, split, {"bg": bg, "co_occur_obj": thing}, pixels))
                if len(rows) % 3:
                    _write_picture(kinds, root / file.replace(".jpg", "_mask.png"), len(rows))
    case = Case(root, rows, {"correlation": correlation}, needs_every_class=False)
    if draw(st.integers(0, 5)) == 5:
        file = root / rows[0].file
        kind, target = draw(st.sampled_from([("bad mask", "_mask.png"), ("mask of no image", "x_mask.png")]))
        file.with_name(file.name.replace(".jpg", target)).write_bytes(BAD[draw(st.sampled_from(sorted(BAD)))](0))
        case.fault = kind
    else:
        _spoil_tree(draw, case)
    return case


def _spoil_tree(draw: Draw, case: Case) -> None:
    if _spoil(draw, case, None):
        return
    folder = (case.root / case.rows[0].file).parent
    kind = draw(
        st.sampled_from(["", "", "junk", "less", "more", "no folder", "no utf-8", "two lines", "folder as image"])
    )
    if kind == "junk":
        for name in ("Thumbs.db", ".DS_Store", "notes.txt"):
            (folder / name).write_bytes(b"junk")
        (folder / "more").mkdir()
        return
    case.fault = kind
    if kind == "less":
        (case.root / case.rows[0].file).unlink()
    elif kind == "more":
        (folder / "zzz.jpg").write_bytes(GOOD["jpeg"](1)[1])
    elif kind == "no folder":
        shutil.rmtree(folder)
    elif kind == "no utf-8":
        (Path(os.fsdecode(os.fsencode(folder) + b"/\xe9.jpg"))).write_bytes(noise(0, 9).tobytes())
    elif kind == "two lines":
        (folder / "two\nlines.jpg").write_bytes(GOOD["jpeg"](1)[1])
    elif kind == "folder as image":
        (folder / "zz.jpg").mkdir()
