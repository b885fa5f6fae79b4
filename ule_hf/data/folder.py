"""Your own images, from a folder with `metadata.csv` or `metadata.jsonl`, or with a sub-folder for each class."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageOps
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from ule_hf.data.groups import add_groups
from ule_hf.data.image_table import SPLITS, first_few, read_image_table
from ule_hf.errors import UleError, first_line
from ule_hf.seeds import named_seed

logger = logging.getLogger(__name__)

#: Share of each group that is drawn for validation, and for test, where the data do not say.
HELD_OUT = 0.15


def load_folder(
    data_dir: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    label_column: str = "label",
    split_column: str | None = None,
    attribute_columns: Sequence[str] = (),
    skip_bad_images: bool = False,
    seed: int = 0,
) -> DatasetDict:
    """The images in ``data_dir``, each decoded once to see that it can be, and read from its file when it is used.

    Either ``data_dir`` holds ``metadata.csv`` (with a header) or ``metadata.jsonl`` with a row for each image, or the
    class is the folder an image lies in: ``<class>/x.jpg``, or ``<split>/<class>/x.jpg``.

    The split is what ``split_column`` says (0, 1, 2, or train, training, validation, valid, val, dev, test); without
    the argument, a column ``split`` or topmost folders named after the splits. Where nothing tells the split, 15 % of
    each group are drawn for validation and 15 % for test; where only validation is missing, 15 % of training's groups.
    A draw takes at least one image of a group, and leaves at least one.

    Args:
        image_column: column of paths relative to ``data_dir``; by default the first of `image_table.IMAGE_COLUMNS`.
        attribute_columns: columns of spurious attributes; a group is a label with a value of each of these.
        skip_bad_images: leave out images that cannot be decoded, and log how many, instead of an error.
        seed: for the drawn splits.

    Returns:
        ``train``, ``validation`` and ``test`` with the columns ``image``, ``label``, the attributes, ``image_id`` (the
        path relative to ``data_dir``) and ``group``. Names are strings; integers are sorted by value.

    Raises:
        UleError: anything wrong with the folder; the message names the file, row or option and the remedy.
    """
    if not data_dir:
        raise UleError("no data folder; name it with --data_dir")
    root = Path(os.path.abspath(data_dir))
    if not root.is_dir():
        raise UleError(f"data folder {data_dir} does not exist or is no folder; correct --data_dir")
    table = read_image_table(root, image_column, label_column, split_column, attribute_columns)
    columns = ["label", *attribute_columns]
    names = {column: _sorted_names(table[column]) for column in columns}
    table["split"] = _complete_splits(root, table, columns, seed)
    _check_classes(root, table, names["label"])
    decoded = decodable(root, table["image"], skip_bad_images)
    if not decoded.all():
        table = table[decoded]
        _check_classes(root, table, names["label"])
    return DatasetDict({split: _dataset(root, table[table["split"] == split], names) for split in SPLITS})


def _sorted_names(column: pd.Series) -> list[str]:
    names = sorted(set(column))
    try:
        return sorted(names, key=int)
    except ValueError:
        return names


def _complete_splits(root: Path, table: pd.DataFrame, columns: list[str], seed: int) -> pd.Series:
    """A split for each row: those there are, and those there are not drawn at random from each group."""
    drawn = "split" not in table
    splits = pd.Series("train", index=table.index) if drawn else table["split"].copy()
    for split in ("train", "test"):
        if not (drawn or (splits == split).any()):
            raise UleError(
                f"{root}: no image is marked {split}; mark some, or remove the split column (or the split folders) to "
                "have the splits drawn"
            )
    if (splits == "validation").any():
        return splits
    groups = table.reset_index(drop=True).groupby(columns, sort=True).indices
    rng = np.random.default_rng(named_seed(seed, "split"))
    for rows in groups.values():
        rows = rng.permutation(rows[(splits.iloc[rows] == "train").to_numpy()])
        count = max(1, round(HELD_OUT * len(rows)))
        held_out = ("test", "validation") if drawn else ("validation",)
        for i, split in enumerate(held_out):
            # the last image of a group stays in train
            splits.iloc[rows[i * count : min((i + 1) * count, len(rows) - 1)]] = split
    sizes = ", ".join(f"{split} {(splits == split).sum()}" for split in SPLITS)
    logger.warning("%s: %s drawn at random, by group (seed %d): %s", root, " and ".join(held_out), seed, sizes)
    return splits


def _check_classes(root: Path, table: pd.DataFrame, labels: list[str]) -> None:
    if len(labels) < 2:
        raise UleError(f"{root} has one class only, '{labels[0]}'; a classifier needs two or more")
    for split in SPLITS:
        there = table[table["split"] == split]
        for label in labels:
            if not (there["label"] == label).any():
                example = table.index[table["label"] == label]
                others = f" (there is {first_few(example, 1)})" if len(example) else ""
                raise UleError(f"{root}: class '{label}' has no image in {split}{others}; add some or remove the class")


def decodable(root: Path, images: pd.Series, skip_bad_images: bool) -> np.ndarray:
    """Which ``images`` (paths relative to ``root``) can be decoded, bool `[N]`; those that cannot are logged.

    Threads help because Pillow decodes outside Python's lock.

    Raises:
        UleError: one cannot be decoded, unless ``skip_bad_images``.
    """
    with ThreadPoolExecutor() as threads:
        problems = list(threads.map(_decoding_problem, [root / image for image in images]))
    bad = [f"{root / image} ({problem})" for image, problem in zip(images, problems, strict=True) if problem]
    if bad and not skip_bad_images:
        count = f"{len(bad)} images" if len(bad) > 1 else "image"
        raise UleError(f"unreadable {count}: {first_few(bad)}; replace, remove, or leave out with --skip_bad_images")
    if bad:
        logger.warning("left out %d unreadable images of %d: %s", len(bad), len(images), first_few(bad))
    return np.array([problem is None for problem in problems], dtype=bool)


def _decoding_problem(path: Path) -> str | None:
    try:
        with PIL.Image.open(path) as image:
            # a JPEG at an eighth of its size: all of the file is still read, in a quarter of the time
            image.draft(None, (1, 1))
            image.load()
            PIL.ImageOps.exif_transpose(image, in_place=True)  # as `datasets` will
            if image.mode in ("I", "F"):
                return "32-bit pixels, of which nobody knows what is black and what is white; save it with 8 or 16 bits"
    except Exception as error:  # Pillow's plugins raise what they like
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _dataset(root: Path, table: pd.DataFrame, names: dict[str, list[str]]) -> Dataset:
    features = Features(image=Image(), **{column: ClassLabel(names=names[column]) for column in names})
    features["image_id"] = Value("string")
    columns = {"image": [str(root / image) for image in table["image"]], "image_id": list(table["image"])}
    columns |= {column: list(table[column]) for column in names}
    return add_groups(Dataset.from_dict(columns, features=features), [name for name in names if name != "label"])
