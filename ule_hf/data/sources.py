"""Where a benchmark comes from: a folder, an archive or a Hub repository of the user's, else its sources in order."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, DatasetDict, Features, load_dataset

from ule_hf.data.archives import cache_folder, download, is_archive, unpack
from ule_hf.data.groups import add_groups
from ule_hf.data.image_table import SPLITS
from ule_hf.errors import UleError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One place to have a benchmark from.

    Args:
        address: URL of an archive, or ``owner/name`` of a Hub dataset repository in Parquet.
        md5: of the archive, where it is known.
    """

    address: str
    md5: str | None = None


def open_data(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    sources: Sequence[Source],
    build: Callable[[Path], DatasetDict],
    conform: Callable[[DatasetDict], DatasetDict],
    licence: str,
    by_hand: str = "",
) -> DatasetDict:
    """The benchmark from ``data_dir``, or, where that is None, from the first of its sources that can be had.

    Args:
        name: of the benchmark.
        data_dir: a raw folder, an archive of it, a folder of Parquet files, or a Hub repository ``owner/name``.
        build: makes a dataset of a raw folder; it finds its files in there, and says what is missing.
        conform: gives a dataset that was read from Parquet the columns of the benchmark.
        licence: a sentence that is shown once.
        by_hand: where to get it where no program can, for the error message.

    Raises:
        UleError: nothing there, or nothing that can be read.
    """
    show_once(f"{name}: {licence}")
    if data_dir is not None:
        return _open(name, str(data_dir), build, conform)
    problems = []
    for source in sources:
        try:
            where = source.address
            if "://" in where:
                where = str(download(where, cache_folder(name), source.md5))
            return _open(name, where, build, conform)
        except UleError as error:
            logger.warning("%s: %s", name, error)
            problems.append(f"\n  {error}")
    remedy = f"get it by hand from {by_hand}, and name the folder" if by_hand else "name a folder of yours"
    raise UleError(f"{name} cannot be had from any source; {remedy} with --data_dir{''.join(problems)}")


def conform_columns(data: DatasetDict, features: Features) -> DatasetDict:
    """Data from Parquet with the columns of ``features``, an ``image_id`` where there is none, and their ``group``.

    Classes are taken by their index: mirrors spell the names in their own ways. The counts tell a wrong order.

    Args:
        features: ``image``, ``label`` and the spurious attributes, in this order.

    Raises:
        UleError: a split or column is missing, or a class index is outside its range.
    """
    if set(data) != set(SPLITS):
        raise UleError(f"the splits are {', '.join(data)} instead of {', '.join(SPLITS)}; use another copy")
    conformed = DatasetDict()
    for split in SPLITS:
        dataset = data[split]
        missing = [column for column in features if column not in dataset.column_names]
        if missing:
            raise UleError(
                f"split {split} has no column '{missing[0]}' (there are {', '.join(dataset.column_names)}); "
                "use another copy"
            )
        if "image_id" not in dataset.column_names:
            dataset = dataset.add_column("image_id", [f"{split}-{row:06d}" for row in range(len(dataset))])
        kept = [*features, *(column for column in ("mask", "image_id") if column in dataset.column_names)]
        dataset = dataset.select_columns(kept)
        for column, feature in features.items():
            if dataset.features[column] != feature:
                dataset = dataset.cast_column(column, feature)
        attributes = [c for c, f in features.items() if isinstance(f, ClassLabel) and c != "label"]
        conformed[split] = add_groups(dataset, attributes)
    return conformed


def folder_with(root: Path, files: Sequence[str], name: str) -> Path:
    """The folder that holds one of ``files``: ``root``, a folder in it, or what an archive in it unpacks to.

    Raises:
        UleError: there is none.
    """
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    for folder in folders:
        if any((folder / file).is_file() for file in files):
            return folder
    archives = sorted(path for path in root.iterdir() if is_archive(path))
    if len(archives) == 1:
        return folder_with(unpack(archives[0], name), files, name)
    raise UleError(f"{root} holds no {' or '.join(files)}, and no archive of {name}; is it the right folder?")


@functools.cache
def show_once(text: str) -> None:
    """Logs ``text`` the first time that this process calls it."""
    logger.warning("%s", text)


def _open(
    name: str,
    where: str,
    build: Callable[[Path], DatasetDict],
    conform: Callable[[DatasetDict], DatasetDict],
) -> DatasetDict:
    path = Path(os.path.abspath(where))
    if is_archive(path):
        return build(unpack(path, name))
    if path.is_dir():
        parquet = any(path.glob("*.parquet")) or any(path.glob("*/*.parquet"))
        return conform(_load_parquet(str(path))) if parquet else build(path)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        raise UleError(f"{where} is no folder, no archive ({name} needs one) and no Hub repository; correct --data_dir")
    return conform(_load_parquet(where))


def _load_parquet(where: str) -> DatasetDict:
    try:
        return load_dataset(where)
    except Exception as error:  # of the Hub, of Parquet, of the card's YAML: datasets wraps some of them
        reason = str(error).strip().splitlines()[0]
        raise UleError(f"{where} cannot be read: {reason}; correct --data_dir") from error
