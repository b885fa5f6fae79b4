"""From a folder of images to a table with a row for each: `metadata.csv`, `metadata.jsonl`, or folders as classes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from unicodedata import normalize

import pandas as pd
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ule_hf.errors import UleError, first_line

#: Where no column is named, the first of these that the metadata have holds the file names.
IMAGE_COLUMNS = ("file_name", "img_filename", "filename", "image", "path")
SPLITS = ("train", "validation", "test")

_SPLIT_OF_FOLDER = {"train": "train", "training": "train", "test": "test"}
_SPLIT_OF_FOLDER |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_SPLIT_OF_CELL = _SPLIT_OF_FOLDER | dict(zip("012", SPLITS, strict=True))
_RESERVED = ("image", "label", "split", "group", "image_id")
#: What would break the line of a message, and bytes of a file name that are no UTF-8, which Arrow cannot store.
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def read_image_table(
    root: Path,
    image_column: str | None = None,
    label_column: str = "label",
    split_column: str | None = None,
    attributes: Sequence[str] = (),
) -> pd.DataFrame:
    """The images in ``root`` as a table of strings; arguments as for :func:`ule_hf.data.folder.load_folder`.

    Returns:
        Columns ``image`` (normalised path relative to ``root``, of a file that is there), ``label``, the attributes,
        and, where anything tells it, ``split`` (one of `SPLITS`). The index says where a row is from, for messages.

    Raises:
        UleError: missing or contradictory metadata, columns, cells or files, or a path that leaves ``root``.
    """
    files = [root / name for name in ("metadata.csv", "metadata.jsonl") if (root / name).is_file()]
    if len(files) == 2:
        raise UleError(f"{root} holds both metadata.csv and metadata.jsonl; remove one of them")
    if files:
        table = _read_metadata(files[0], image_column, label_column, split_column, attributes)
    elif image_column or split_column or attributes or label_column != "label":
        raise UleError(f"{root} holds no metadata.csv or metadata.jsonl whose columns could be named; add one")
    else:
        table = _read_folders(root)
    return checked_paths(root, table)


def first_few(items: Iterable[object], count: int = 3) -> str:
    """``a, b, c and 4 more``; control characters are written out, so that it is one line."""
    names = [_ODD.sub(lambda odd: ascii(odd[0])[1:-1], str(item)) for item in items]
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def refuse_odd_names(where: object, names: Iterable[str]) -> None:
    """Raises a UleError where a file's name has control characters or is no UTF-8."""
    odd = [name for name in names if _ODD.search(name)]
    if odd:
        raise UleError(f"{where}: control characters, or bytes that are no UTF-8, in {first_few(odd)}; rename it")


def _read_metadata(
    file: Path, image_column: str | None, label_column: str, split_column: str | None, attributes: Sequence[str]
) -> pd.DataFrame:
    frame = _read_jsonl(file) if file.suffix == ".jsonl" else read_csv(file)
    for attribute in attributes:
        if attribute in _RESERVED or attribute == label_column or list(attributes).count(attribute) > 1:
            raise UleError(
                f"--attribute_columns {attribute}: an attribute is a column of its own, named once, and none of "
                f"{', '.join(_RESERVED)}; rename the column in {file}"
            )
    image_column = image_column or next((name for name in IMAGE_COLUMNS if name in frame), IMAGE_COLUMNS[0])
    split_column = split_column or ("split" if "split" in frame else None)
    columns = {"image": image_column, "label": label_column, "split": split_column}
    columns |= {attribute: attribute for attribute in attributes}
    columns = {name: column for name, column in columns.items() if column is not None}
    for name, column in columns.items():
        if column not in frame:
            option = f"--{name}_column" if name in _RESERVED else "--attribute_columns"
            there = first_few(frame.columns, len(frame.columns))
            raise UleError(f"{file} has no column '{column}'; give {option} one of: {there}")

    table = pd.DataFrame({name: frame[column] for name, column in columns.items()})
    table.index = [f"{file.name} row {row} ({image})" for row, image in zip(frame.index, table["image"], strict=True)]
    for name, column in columns.items():
        if name != "image":
            # neither a blank behind a name, nor another spelling of its accents, is another class
            table[name] = table[name].str.strip().str.normalize("NFC")
        odd = [row for row, cell in table[name].items() if _ODD.search(cell)]
        if odd:
            raise UleError(f"{file}: control characters in column '{column}': {first_few(odd)}; write it in one line")
        empty = table.index[table[name] == ""]
        if len(empty):
            raise UleError(f"{file}: empty cell in column '{column}': {first_few(empty)}; fill it or remove the row")
    if "split" in table:
        known = table["split"].str.lower().map(_SPLIT_OF_CELL)
        if known.isna().any():
            raise UleError(
                f"{file}: column '{split_column}' says '{table['split'][known.isna()].iloc[0]}' in "
                f"{first_few(table.index[known.isna()])}; write 0 or train, 1 or validation, 2 or test"
            )
        table["split"] = known
    else:
        _add_splits_of_folders(table)
    return table


def read_csv(file: Path) -> pd.DataFrame:
    """All cells as they are written (``01`` and ``NA`` are names); the index counts rows as a spreadsheet does.

    Rows without anything in them are left out.

    Raises:
        UleError: no UTF-8, no header, no rows, a column twice, or a row with more cells than the header.
    """
    try:
        # the header is read as a row: pandas would rename a column that occurs twice, and take the first for it
        frame = pd.read_csv(
            file, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig"
        )
    except (OSError, ValueError) as error:
        raise UleError(
            f"{file} cannot be read: {first_line(error)}; "
            "save it as UTF-8 with a header, with quotes around cells with commas"
        ) from error
    frame = frame.fillna("")  # cells that a short row lacks
    frame.index += 1
    frame.columns = list(frame.iloc[0])
    twice = [name for name in frame.columns if name and list(frame.columns).count(name) > 1]
    if twice:
        raise UleError(f"{file} has two columns '{first_few(twice[:1])}'; rename one of them")
    frame = frame.iloc[1:]
    return _not_empty(file, frame[(frame != "").any(axis=1)])


def _read_jsonl(file: Path) -> pd.DataFrame:
    """All values as strings; the index counts lines. pandas' own reader would make 1.0 of 1 beside a missing value."""
    rows = {}
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if line.strip():
                rows[number] = _json_cells(line)
    except (OSError, UnicodeDecodeError) as error:
        raise UleError(f"{file} cannot be read: {first_line(error)}; save it as UTF-8") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise UleError(
            f'{file} row {number} is no JSON object; write {{"file_name": "...", "label": "..."}}'
        ) from error
    return _not_empty(file, pd.DataFrame(list(rows.values()), index=list(rows)).fillna(""))


def _not_empty(file: Path, frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty:
        raise UleError(f"{file} holds no rows; write one for each image")
    return frame


def _json_cells(line: str) -> dict[str, str]:
    """Names and values as strings; null, NaN, lists and objects, which are no names, as empty cells."""
    row = json.loads(line, object_pairs_hook=_unique, parse_constant=lambda name: None)
    cells = {
        name: "" if value is None or isinstance(value, (list, dict)) else str(value) for name, value in row.items()
    }
    "".join([*cells, *cells.values()]).encode()  # a ValueError for half a surrogate pair
    return cells


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _read_folders(root: Path) -> pd.DataFrame:
    """``<class>/x.jpg``, or ``<split>/<class>/x.jpg`` where all topmost folders are named after splits."""
    images, folders = [], []
    for folder, subfolders, files in os.walk(root, onerror=_refuse_closed_folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = PurePath(folder).relative_to(root)
        for name in subfolders:
            if os.path.islink(os.path.join(folder, name)):  # walk would leave it out without a word
                raise UleError(f"{root / relative / name} is a link to a folder; put the folder itself there")
        folders += [relative / name for name in subfolders]
        images += [relative / name for name in sorted(files) if _is_image(name)]
    if not images:
        raise UleError(f"{root} holds neither metadata.csv, nor metadata.jsonl, nor images; is it the right folder?")
    refuse_odd_names(root, map(str, images))
    table = pd.DataFrame({"image": [str(image) for image in images]}, index=[str(image) for image in images])
    _add_splits_of_folders(table)
    depth = 2 if "split" in table else 1
    shallow = [image for image in images if len(image.parts) <= depth]
    if shallow:
        raise UleError(f"{root}: no class folder around {first_few(shallow)}; put each image into its class's folder")
    filled = {parent for image in images for parent in image.parents}
    empty = [folder for folder in folders if len(folder.parts) <= depth and folder not in filled]
    if empty:
        raise UleError(f"{root}: no images in {first_few(empty)}; add some or remove the folder")
    table["label"] = [normalize("NFC", image.parts[depth - 1]) for image in images]
    return table


def _refuse_closed_folder(error: OSError) -> None:
    """`os.walk` would leave it out without a word."""
    raise UleError(f"{error.filename} cannot be read: {error.strerror}; change its rights or move it away") from error


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in ImageFolder.EXTENSIONS


def _add_splits_of_folders(table: pd.DataFrame) -> None:
    """Adds ``split`` where all images lie in topmost folders named after splits."""
    top = table["image"].map(lambda image: PurePath(image).parts[0])
    splits = top.str.lower().map(_SPLIT_OF_FOLDER)
    if splits.notna().all():
        table["split"] = splits
    elif splits.notna().any():
        split, other = top[splits.notna()].iloc[0], top[splits.isna()].iloc[0]
        raise UleError(
            f"'{other}' lies beside '{split}', which is the name of a split; name all topmost folders after splits, "
            "or none, or say which is which in a metadata.csv with a split column"
        )


def checked_paths(root: Path, table: pd.DataFrame) -> pd.DataFrame:
    """``image`` normalised; every file is there, inside ``root``, and there once."""
    table["image"] = table["image"].map(os.path.normpath)
    outside = table["image"].map(lambda image: os.path.isabs(image) or PurePath(image).parts[:1] == ("..",))
    if outside.any():
        raise UleError(f"path outside {root}: {first_few(table.index[outside])}; name files relative to it, inside it")
    missing = ~table["image"].map(lambda image: os.path.isfile(root / image)).astype(bool)
    if missing.any():
        raise UleError(f"file missing in {root}: {first_few(table.index[missing])}; add it or remove the row")
    real = table["image"].map(lambda image: os.path.realpath(root / image))
    prefix = os.path.join(os.path.realpath(root), "")
    outside = ~real.str.startswith(prefix)
    if outside.any():
        raise UleError(f"link out of {root}: {first_few(table.index[outside])}; put the file itself there")
    twice = real.duplicated(keep=False)
    if twice.any():
        same = table.index[real == real[twice].iloc[0]]
        raise UleError(f"one file, several rows in {root}: {first_few(same)}; keep one of them")
    return table
