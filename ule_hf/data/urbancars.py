"""UrbanCars (Li et al., *A Whac-A-Mole Dilemma*, CVPR 2023): two shortcuts at once.

Urban or country car, before an urban or country background, beside an object of the city or of the country. In
training each shortcut agrees with the label in 95 % of the images, in validation and test in half. Nobody distributes
the images; :mod:`ule_hf.data.urbancars_build` composes them from their sources. The benchmark's figures are
:func:`ule_hf.metrics.shortcut_gaps`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from datasets import ClassLabel, DatasetDict, Features, Image, Value

from ule_hf.data.archives import is_archive, unpack
from ule_hf.data.builder import build
from ule_hf.data.folder import decodable
from ule_hf.data.groups import group_ids, group_names
from ule_hf.data.image_table import checked_paths, first_few, refuse_odd_names
from ule_hf.data.publish import Card
from ule_hf.data.sources import conform_columns, open_data
from ule_hf.data.verify import Counts, verify
from ule_hf.errors import UleError

#: Of the label and of both shortcuts, in the order of their ids.
LABELS = ("urban", "country")
ATTRIBUTES = {"bg": LABELS, "co_occur_obj": LABELS}
GROUPS = tuple(group_names(LABELS, ATTRIBUTES))
#: Width and height in pixels that every image has.
IMAGE_SIZE = (256, 256)
#: Options of :func:`load` that say which benchmark it is, and their defaults.
OPTIONS = {"correlation": "0.95"}
CORRELATIONS = ("0.95", "0.5")
#: Images of each class, by split.
IMAGES_PER_CLASS = {"train": 4000, "validation": 500, "test": 500}
#: What the three splits are called on disk.
FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def group_sizes(images_per_class: int, correlation: float) -> dict[str, int]:
    """Images of each group: 3610, 190, 190 and 10 of a class of 4000 at 0.95; 125 of each group of 500 at 0.5.

    A group's share is the product of ``correlation`` for each shortcut that agrees with the label and its complement
    for each that does not; rounded down, as the authors' generator does, but at least one image.
    """
    sizes = {}
    for group, (label, *shortcuts) in zip(GROUPS, product(LABELS, repeat=3), strict=True):
        share = 1.0
        for shortcut in shortcuts:
            share *= correlation if shortcut == label else 1 - correlation
        sizes[group] = max(1, int(share * images_per_class))
    return sizes


def _published(correlation: str) -> Counts:
    of_split = {"train": float(correlation), "validation": 0.5, "test": 0.5}
    return {split: group_sizes(IMAGES_PER_CLASS[split], of_split[split]) for split in FOLDERS}


#: By the correlation in training; 0.5 is training without a shortcut, which bounds what a method can reach.
PUBLISHED: dict[str, Counts] = {correlation: _published(correlation) for correlation in CORRELATIONS}
LICENCE = (
    "code and lists CC BY-NC 4.0; cars of Stanford Cars (non-commercial research), objects of COCO/LVIS and scenes of "
    "Places keep their own terms"
)
CARD = Card(
    title="UrbanCars",
    licence=LICENCE,
    source="https://github.com/facebookresearch/Whac-A-Mole; Stanford Cars, LVIS v1 on COCO 2017, Places365",
    construction=(
        "A car, cut out with a segmenter, in the middle of a scene (half of its width); to the right of it (a quarter) "
        "an object of the city or the country, cut out of COCO. In training each shortcut agrees with the label in "
        "95 % of the images, independently of the other; in validation and test in half."
    ),
    traps=(
        "The images are not distributed: copies are built, and differ in the cars' masks and the JPEG encoder.",
        "I.D. accuracy weights the test groups as in training; it is not the accuracy on the test split.",
    ),
    citation="""@inproceedings{li2023whac,
  title={A Whac-A-Mole Dilemma: Shortcuts Come in Multiples Where Mitigating One Amplifies Others},
  author={Li, Zhiheng and Evtimov, Ivan and Gordo, Albert and Hazirbas, Caner and Hassner, Tal and
          Ferrer, Cristian Canton and Xu, Chenliang and Ibrahim, Mark},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2023}
}""",
    restricted=True,
)

#: Column of a mask -> what its file's name ends in, behind the image's number.
MASKS = {"mask": "_mask.png", "co_occur_obj_mask": "_co_occur_obj_mask.png"}
_BASE = Features(image=Image(), label=ClassLabel(names=list(LABELS)))
_BASE.update({attribute: ClassLabel(names=list(names)) for attribute, names in ATTRIBUTES.items()})
#: The paper's three notions of a group: of both shortcuts, of the background, of the object.
_NOTIONS = {"group": ("bg", "co_occur_obj"), "bg_group": ("bg",), "co_occur_obj_group": ("co_occur_obj",)}


def load(
    data_dir: str | os.PathLike[str] | None = None,
    correlation: str | float = "0.95",
    *,
    variant: str | None = None,
) -> DatasetDict:
    """UrbanCars, verified.

    Args:
        data_dir: the folder with `bg-0.95_co_occur_obj-0.95/` and `bg-0.5_co_occur_obj-0.5/` (or the one around it), an
            archive of it, a folder of Parquet files, or a Hub repository. There is no official source of images.
        correlation: of both shortcuts in training, 0.95 or 0.5; validation and test are always of 0.5.
        variant: the name of data that are not the published ones.

    Returns:
        ``train``, ``validation`` and ``test`` with the columns ``image``, ``label``, ``bg``, ``co_occur_obj``,
        ``group`` (of all three, eight), ``bg_group`` and ``co_occur_obj_group`` (of the label and one shortcut, four
        each), ``image_id`` (the path in the folder), and the masks of the car and of the object, ``mask`` and
        ``co_occur_obj_mask`` (None where there is no file). Remove these before a transform that does not need them:
        it would decode them.

    Raises:
        UleError: nothing there, another correlation, a wrong copy, or a bad file.
    """
    correlation = str(correlation)
    if correlation not in CORRELATIONS:
        raise UleError(f"urbancars: correlation {correlation} is unknown; choose one of {', '.join(CORRELATIONS)}")

    def build_tree(root: Path) -> DatasetDict:
        root = _tree(root, correlation)
        digest = hashlib.sha256(repr(_files(root, correlation)).encode()).hexdigest()
        return build(UrbanCars, root, correlation=correlation, listing=digest)

    data = open_data("urbancars", data_dir, (), build_tree, _conform, LICENCE)
    return verify(f"urbancars {correlation}", data, PUBLISHED[correlation], variant, image_size=IMAGE_SIZE)


@dataclass
class UrbanCarsConfig(datasets.BuilderConfig):
    """``listing`` is a digest of the file names: with it, the cache notices another folder."""

    correlation: str = "0.95"
    listing: str = ""


class UrbanCars(datasets.GeneratorBasedBuilder):
    """From the published folder layout as ``data_dir``; the rows keep the paths of its images, so it has to stay.

    Every image and mask is decoded once, when the rows are first made.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = UrbanCarsConfig

    def _info(self) -> datasets.DatasetInfo:
        features = Features(_BASE)
        for column, attributes in _NOTIONS.items():
            features[column] = ClassLabel(names=group_names(LABELS, {name: ATTRIBUTES[name] for name in attributes}))
        features.update({"image_id": Value("string"), **{column: Image() for column in MASKS}})
        return datasets.DatasetInfo(features=features)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        table = self._table()
        return [
            datasets.SplitGenerator(split, gen_kwargs={"rows": table[table["split"] == split].to_dict("records")})
            for split in FOLDERS
        ]

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        root = self.config.data_dir
        for key, row in enumerate(rows):
            example = {column: row[column] for column in ("label", *ATTRIBUTES, *_NOTIONS)}
            for column in MASKS:
                # pandas has made NaN of None
                example[column] = None if pd.isna(row[column]) else os.path.join(root, row[column])
            yield key, {**example, "image": os.path.join(root, row["image"]), "image_id": row["image"]}

    def _table(self) -> pd.DataFrame:
        root = Path(self.config.data_dir)
        rows = []
        for (split, *values), folder, names in _files(root, self.config.correlation):
            images = [name for name in names if name.endswith(".jpg")]
            strangers = set(names) - set(images)
            for name in images:
                row = {
                    "split": split,
                    **dict(zip(("label", *ATTRIBUTES), values, strict=True)),
                    "image": f"{folder}/{name}",
                }
                for column, ending in MASKS.items():
                    mask = name.removesuffix(".jpg") + ending
                    row[column] = f"{folder}/{mask}" if mask in strangers else None
                    strangers.discard(mask)
                rows.append(row)
            if strangers:
                raise UleError(f"{root / folder} holds masks of no image: {first_few(sorted(strangers))}; remove them")
        table = pd.DataFrame(rows)
        files = pd.concat([table["image"], *(table[column].dropna() for column in MASKS)])
        files = checked_paths(root, pd.DataFrame({"image": files.array}, index=files.array))["image"]
        decodable(root, files, skip_bad_images=False)
        for column, attributes in _NOTIONS.items():
            table[column] = group_ids(table["label"], table, LABELS, {name: ATTRIBUTES[name] for name in attributes})
        return table


def folder_of(correlation: str | float) -> str:
    return f"bg-{correlation}_co_occur_obj-{correlation}"


def _tree(root: Path, correlation: str) -> Path:
    """The folder with both correlations: ``root``, `urbancars` in it, or what an archive in it unpacks to."""
    for folder in (root, root / "urbancars"):
        if (folder / folder_of(correlation)).is_dir():
            return folder
    archives = sorted(path for path in root.iterdir() if is_archive(path))
    if len(archives) == 1:
        return _tree(unpack(archives[0], "urbancars"), correlation)
    raise UleError(f"{root} holds no {folder_of(correlation)}/, and no archive of it; is it the right folder?")


def _files(root: Path, correlation: str) -> list[tuple[tuple[str, int, int, int], str, list[str]]]:
    """Of each group's folder: split and ids; its path relative to ``root``; the names of its pictures, sorted."""
    folders = []
    for split, name in FOLDERS.items():
        composition = folder_of(correlation if split == "train" else 0.5)
        for label, bg, co_occur_obj in product(range(len(LABELS)), repeat=3):
            group = f"obj-{LABELS[label]}_bg-{LABELS[bg]}_co_occur_obj-{LABELS[co_occur_obj]}"
            folder = f"{composition}/{name}/{group}"
            if not (root / folder).is_dir():
                raise UleError(f"{root} has no folder {folder}; get or build it anew")
            names = sorted(file for file in os.listdir(root / folder) if file.endswith((".jpg", ".png")))
            refuse_odd_names(root / folder, names)
            folders.append(((split, label, bg, co_occur_obj), folder, names))
    return folders


def _conform(data: DatasetDict) -> DatasetDict:
    """Parquet that this package wrote has all columns; other copies need not know masks and notions of a group."""
    complete = set(data) == set(FOLDERS) and all(set(_NOTIONS) <= set(split.column_names) for split in data.values())
    return data if complete else conform_columns(data, _BASE)
