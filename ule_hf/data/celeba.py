"""CelebA (Liu et al. 2015) with one attribute to tell and another that is spurious: blond hair and gender by default.

Only 1 % of the training images show blond men; a test worst group of 180 images moves in steps of 0.56 points.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pandas as pd
from datasets import ClassLabel, DatasetDict, Features, Image, Value

from ule_hf.data.archives import unpack
from ule_hf.data.builder import build
from ule_hf.data.folder import decodable
from ule_hf.data.groups import group_ids, group_names
from ule_hf.data.image_table import SPLITS, checked_paths, first_few, refuse_odd_names
from ule_hf.data.publish import Card
from ule_hf.data.sources import Source, conform_columns, folder_with, open_data
from ule_hf.data.verify import Counts, verify, verify_counts
from ule_hf.errors import UleError, first_line

logger = logging.getLogger(__name__)

#: Names and defaults of what :func:`load` takes: the attribute to tell, and the spurious one.
OPTIONS = {"target": "Blond_Hair", "attribute": "Male"}
#: Sizes of the groups for the default options, three independent tables that agree; of others only the totals.
PUBLISHED_SIZES = {
    "train": (71629, 66874, 22880, 1387),
    "validation": (8535, 8276, 2874, 182),
    "test": (9767, 7535, 2480, 180),
}
#: Width and height in pixels of every aligned image.
IMAGE_SIZE = (178, 218)
SOURCES = (Source("eurecom-ds/celeba"),)
LICENCE = "for non-commercial research only; images may not be passed on without the authors' consent"
CARD = Card(
    title="CelebA",
    licence=LICENCE,
    source=(
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: `img_align_celeba.zip` "
        "(md5 00d2c5bc6d35e252742224ab0c1e8fcb), `list_attr_celeba.txt` (md5 75e246fa4810816ffd6ee81facbd244c), "
        "`list_eval_partition.txt` (md5 d32c9cbf5e040fd4025c592c306e6668)"
    ),
    construction=(
        "The official aligned images and split; the label is one of the 40 attributes, the spurious attribute another. "
        "`group` is 2 · label + attribute."
    ),
    traps=(
        "For blond hair, always answering no scores 86.67 % on average and 0 % in the worst group.",
        "The smallest test group has 180 images: its accuracy moves in steps of 0.56 points.",
        "At least one mirror has the names of validation and test swapped.",
    ),
    citation="""@inproceedings{liu2015faceattributes,
  title={Deep Learning Face Attributes in the Wild},
  author={Liu, Ziwei and Luo, Ping and Wang, Xiaogang and Tang, Xiaoou},
  booktitle={International Conference on Computer Vision},
  year={2015}
}""",
)

_SUFFIXES = (".txt", ".csv", ".txt.gz", ".csv.gz", ".zip")
_ATTRIBUTES = tuple(f"list_attr_celeba{suffix}" for suffix in _SUFFIXES)
_PARTITION = tuple(f"list_eval_partition{suffix}" for suffix in _SUFFIXES)


def load(
    data_dir: str | os.PathLike[str] | None = None,
    target: str = OPTIONS["target"],
    attribute: str = OPTIONS["attribute"],
    *,
    skip_bad_images: bool = False,
    variant: str | None = None,
) -> DatasetDict:
    """CelebA, verified.

    Args:
        data_dir: a folder with `img_align_celeba` (folder or zip), `list_attr_celeba` and `list_eval_partition` (txt or
            csv, plain or compressed, also in sub-folders as officially); a folder of Parquet files; or a Hub
            repository, with the attributes as columns. By default what can be had of `SOURCES`.
        target, attribute: names of CelebA's attributes.
        skip_bad_images: leave out images of a folder or archive that cannot be decoded; the data then are the variant
            "without n unreadable images".
        variant: the name of data that are not the published ones.

    Returns:
        ``train``, ``validation`` and ``test`` with the columns ``image``, ``label``, the attribute under its name,
        ``group``, and ``image_id`` (the file name; from Parquet without it, split and row).

    Raises:
        UleError: nothing there, an unknown attribute, a wrong copy, or a bad file.
    """
    _check_options(target, attribute)
    data = open_data(
        "celeba",
        data_dir,
        SOURCES,
        build=lambda root: _build(root, target, attribute, skip_bad_images),
        conform=lambda data: _conform(data, target, attribute),
        licence=LICENCE,
        by_hand=CARD.source,
    )
    return verify(_name(target, attribute), data, published(target, attribute), variant, skip_bad_images, IMAGE_SIZE)


def published(target: str, attribute: str) -> Counts:
    """The published counts: of the groups for blond hair and gender, else of the splits."""
    if {"target": target, "attribute": attribute} == OPTIONS:
        groups = _groups(target, attribute)
        return {split: dict(zip(groups, sizes, strict=True)) for split, sizes in PUBLISHED_SIZES.items()}
    return {split: sum(sizes) for split, sizes in PUBLISHED_SIZES.items()}


def verify_metadata(
    file: str | os.PathLike[str],
    target: str = OPTIONS["target"],
    attribute: str = OPTIONS["attribute"],
    variant: str | None = None,
) -> Counts:
    """The counts that `list_attr_celeba`, with `list_eval_partition` beside it, tells without any image.

    Raises:
        UleError: they are not the published ones, an unknown attribute, or a bad file.
    """
    _check_options(target, attribute)
    file = Path(file)
    partition = next((file.with_name(name) for name in _PARTITION if file.with_name(name).is_file()), None)
    table = read_metadata(file, partition, target, attribute)
    names = _groups(target, attribute)
    counts = {split: dict.fromkeys(names, 0) for split in SPLITS}
    for (split, label, value), size in table.groupby(["split", "label", attribute]).size().items():
        counts[split][names[2 * label + value]] = int(size)
    verify_counts(_name(target, attribute), counts, published(target, attribute), variant)
    return counts


def read_metadata(attributes: Path, partition: Path | None, target: str, attribute: str) -> pd.DataFrame:
    """Columns ``image`` (file name), ``label``, the attribute (0 or 1), ``split``; the index says where a row is from.

    Args:
        partition: None where ``attributes`` has a column ``split`` itself.

    Raises:
        UleError: a missing file or column, an unknown attribute, other values than -1, 0 and 1, or rows of one file
            that the other does not have.
    """
    frame = _read_table(attributes)
    for name in (target, attribute):
        if name not in frame:
            there = first_few(frame.columns, len(frame.columns))
            raise UleError(f"{attributes} has no attribute '{name}'; choose one of {there}")
    table = pd.DataFrame(
        {"label": _binary(attributes, frame[target]), attribute: _binary(attributes, frame[attribute])}
    )
    if partition is not None:
        splits = _read_table(partition, names=["image_id", "partition"])
        only = splits.index.symmetric_difference(frame.index)
        if len(only):
            where = partition if only[0] in splits.index else attributes
            raise UleError(
                f"{len(only)} images are in only one of the two files, such as {only[0]} in {where}; get both anew"
            )
        frame["split"] = splits.iloc[:, 0]
    elif "split" not in frame:
        raise UleError(f"no list_eval_partition beside {attributes}; put it there")
    table["split"] = pd.to_numeric(frame["split"], errors="coerce").map(dict(enumerate(SPLITS)))
    unknown = table.index[table["split"].isna()]
    if len(unknown):
        raise UleError(f"{partition or attributes}: split is not 0, 1 or 2 for {first_few(unknown)}; get it anew")
    table.insert(0, "image", table.index)
    return table


@dataclass
class CelebAConfig(datasets.BuilderConfig):
    """Which of the 40 attributes is the label, which one is spurious, and whether broken images are left out."""

    target: str = OPTIONS["target"]
    attribute: str = OPTIONS["attribute"]
    skip_bad_images: bool = False


class CelebA(datasets.GeneratorBasedBuilder):
    """From the folder ``data_dir``; the rows keep the paths of its images, so it has to stay.

    Every image is decoded once, when the rows are first made.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = CelebAConfig

    def _info(self) -> datasets.DatasetInfo:
        target, attribute = self.config.target, self.config.attribute
        groups = ClassLabel(names=_groups(target, attribute))
        return datasets.DatasetInfo(
            features=Features(**_features(target, attribute), group=groups, image_id=Value("string"))
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        target, attribute = self.config.target, self.config.attribute
        root = Path(self.config.data_dir)
        images = _image_folder(root)
        table = checked_paths(images, read_metadata(*_metadata(root), target, attribute))
        table = table[decodable(images, table["image"], self.config.skip_bad_images)].copy()
        table["group"] = group_ids(table["label"], table, *_names(target, attribute))
        return [
            datasets.SplitGenerator(
                split, gen_kwargs={"images": images, "rows": table[table["split"] == split].to_dict("records")}
            )
            for split in SPLITS
        ]

    def _generate_examples(self, images: Path, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, row in enumerate(rows):
            example = {column: row[column] for column in ("label", self.config.attribute, "group")}
            yield key, example | {"image": os.path.join(images, row["image"]), "image_id": row["image"]}


def _build(root: Path, target: str, attribute: str, skip_bad_images: bool) -> DatasetDict:
    if not (root / "Anno").is_dir():  # officially Anno, Eval and Img lie side by side
        root = folder_with(root, _ATTRIBUTES, "celeba")
    return build(CelebA, root, _metadata(root), target=target, attribute=attribute, skip_bad_images=skip_bad_images)


def _metadata(root: Path) -> tuple[Path, Path]:
    found = []
    for names in (_ATTRIBUTES, _PARTITION):
        files = [folder / name for folder in (root, root / "Anno", root / "Eval") for name in names]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise UleError(f"{root} holds no {names[0]} or csv of that name; put it there")
        found.append(file)
    return found[0], found[1]


def _image_folder(root: Path) -> Path:
    for folder in (root, root / "Img"):
        # a folder inside of the same name: as one mirror packs it
        for images in (folder / "img_align_celeba" / "img_align_celeba", folder / "img_align_celeba"):
            if images.is_dir():
                return images
        if (folder / "img_align_celeba.zip").is_file():
            return _image_folder(unpack(folder / "img_align_celeba.zip", "celeba"))
    raise UleError(f"{root} holds no img_align_celeba, neither folder nor zip; put it there")


def _conform(data: DatasetDict, target: str, attribute: str) -> DatasetDict:
    """From Parquet, either as this package writes it, or with the attributes as columns of -1, 0 and 1."""
    sizes = {split: sum(PUBLISHED_SIZES[split]) for split in ("validation", "test")}
    found = {split: len(data[split]) for split in data if split in sizes}
    if found == {"validation": sizes["test"], "test": sizes["validation"]}:
        logger.warning("celeba: validation and test of this copy have each other's size: their names are swapped back")
        data = DatasetDict({"train": data["train"], "validation": data["test"], "test": data["validation"]})
    features = _features(target, attribute)
    for split, dataset in data.items():
        if "label" in dataset.features and dataset.features["label"] != features["label"]:
            raise UleError(f"this copy was made for another label than {target}; name that one with --target")
        for column, name in {"label": target, attribute: attribute}.items():
            if column in dataset.features and isinstance(dataset.features[column], ClassLabel):
                continue
            if name not in dataset.features:
                there = ", ".join(dataset.column_names)
                raise UleError(f"split {split} of this copy has no attribute '{name}'; choose one of {there}")
            values = _binary(Path(split), pd.Series(dataset[name][:], name=name))
            if column in dataset.column_names:
                dataset = dataset.remove_columns(column)
            dataset = dataset.add_column(column, values.tolist(), feature=features[column])
        data[split] = dataset
    return conform_columns(data, features)


def _read_table(file: Path, names: list[str] | None = None) -> pd.DataFrame:
    """A table indexed by file name: csv, or CelebA's own text (count, header, rows; ``names`` where it has neither)."""
    try:
        with fsspec.open(str(file), "rt", compression="infer", encoding="utf-8-sig") as stream:
            text = stream.read()
        first, second = [*text.split("\n", 2), "", ""][:2]
        separator, skipped = r"\s+", 0
        if "," in first:
            names, separator, skipped = next(csv.reader([first])), ",", 1
        elif names is None:
            names, skipped = ["image_id", *second.split()], 2
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with too many cells
            rows = {"names": names, "header": None, "skiprows": skipped, "dtype": {names[0]: str}, "index_col": False}
            frame = pd.read_csv(io.StringIO(text), sep=separator, **rows).dropna(how="all").set_index(names[0])
    except Exception as error:  # of the disk, of three kinds of compression, of pandas
        raise UleError(f"{file} cannot be read: {first_line(error)}; get it anew") from error
    lacking = frame.index[frame.index.isna() | frame.isna().any(axis=1)]
    if len(lacking):
        raise UleError(f"{file}: a row is not whole, or has an empty cell: {first_few(lacking)}; get it anew")
    refuse_odd_names(file, frame.index)
    if frame.index.has_duplicates:
        raise UleError(f"{file}: {frame.index[frame.index.duplicated()][0]} occurs twice; get it anew")
    return frame


def _binary(where: Path, values: pd.Series) -> pd.Series:
    """-1 or 0 to 0, 1 to 1."""
    binary = pd.to_numeric(values, errors="coerce").map({-1: 0, 0: 0, 1: 1})
    bad = values.index[binary.isna()]
    if len(bad):
        value = first_few([values[bad[0]]])
        raise UleError(f"{where}: '{value}' of {values.name} is not -1, 0 or 1: {first_few(bad)}; get it anew")
    return binary.astype(int)


def _check_options(target: str, attribute: str) -> None:
    if target == attribute or attribute in ("image", "label", "group", "image_id"):
        raise UleError(f"--attribute {attribute}: name an attribute of CelebA other than --target")


def _names(target: str, attribute: str) -> tuple[list[str], dict[str, list[str]]]:
    return [f"not {target}", target], {attribute: ["no", "yes"]}


def _groups(target: str, attribute: str) -> list[str]:
    return group_names(*_names(target, attribute))


def _features(target: str, attribute: str) -> Features:
    labels, attributes = _names(target, attribute)
    return Features(
        image=Image(), label=ClassLabel(names=labels), **{attribute: ClassLabel(names=attributes[attribute])}
    )


def _name(target: str, attribute: str) -> str:
    """``celeba`` is the benchmark that everybody means; any other pair is named."""
    return "celeba" if {"target": target, "attribute": attribute} == OPTIONS else f"celeba {target} by {attribute}"
