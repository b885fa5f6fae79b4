"""Waterbirds (Sagawa et al. 2020): birds of CUB-200-2011 on land and water backgrounds of Places.

Land birds stand before land and water birds before water in 95 % of the training images; in validation and test each
background is as frequent as the other, within each class.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from datasets import ClassLabel, DatasetDict, Features, Image, Value

from ule_hf.data.builder import build
from ule_hf.data.folder import decodable
from ule_hf.data.groups import group_ids, group_names
from ule_hf.data.image_table import SPLITS, checked_paths, first_few, read_csv
from ule_hf.data.publish import Card
from ule_hf.data.sources import Source, conform_columns, folder_with, open_data
from ule_hf.data.verify import Counts, verify, verify_counts
from ule_hf.errors import UleError

LABELS = ("land bird", "water bird")
PLACES = ("land", "water")
GROUPS = tuple(group_names(LABELS, {"place": PLACES}))
#: Training: the authors' own count, as WILDS has it; validation and test: three independent tables that agree.
PUBLISHED: Counts = {
    split: dict(zip(GROUPS, sizes, strict=True))
    for split, sizes in {
        "train": (3498, 184, 56, 1057),
        "validation": (467, 466, 133, 133),
        "test": (2255, 2255, 642, 642),
    }.items()
}
#: Width and height in pixels that every image has: CUB's pictures are of many sizes.
IMAGE_SIZE = None
#: What the command line passes to :func:`load` and :func:`verify_metadata`: nothing.
OPTIONS: dict[str, str] = {}
SOURCES = (
    Source("https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz"),
    Source("grodino/waterbirds"),
)
LICENCE = (
    "for non-commercial research and education (CUB-200-2011, Places); whoever passes images on answers for the right"
)
CARD = Card(
    title="Waterbirds",
    licence=LICENCE,
    source=(
        "`waterbird_complete95_forest2water2` of https://github.com/kohpangwei/group_DRO; birds of CUB-200-2011, "
        "backgrounds of Places365 (bamboo forest, broadleaf forest; ocean, lake)"
    ),
    construction=(
        "Each bird is cut out of its photograph with CUB's segmentation and pasted on a background. In training 95 % "
        "of each class stand on the background of their own kind; in validation (20 % of CUB's training images) and "
        "test, half. `group` is 2 · label + place."
    ),
    traps=(
        "Composing the set anew does not give the same images or groups; figures are comparable for this copy only.",
        "Test is balanced over backgrounds: published averages weight the groups by their share of training "
        "(.7295 / .0384 / .0117 / .2204).",
        "Known label noise: Eastern Towhee, Western Meadowlark and Western Wood Pewee count as water birds.",
    ),
    citation="""@inproceedings{sagawa2020distributionally,
  title={Distributionally Robust Neural Networks for Group Shifts},
  author={Sagawa, Shiori and Koh, Pang Wei and Hashimoto, Tatsunori B and Liang, Percy},
  booktitle={International Conference on Learning Representations},
  year={2020}
}""",
)

_FEATURES = Features(image=Image(), label=ClassLabel(names=list(LABELS)), place=ClassLabel(names=list(PLACES)))
_METADATA = "metadata.csv"


def load(
    data_dir: str | os.PathLike[str] | None = None, *, skip_bad_images: bool = False, variant: str | None = None
) -> DatasetDict:
    """Waterbirds, verified.

    Args:
        data_dir: the official archive, its folder (`metadata.csv` beside a folder for each species), a folder of
            Parquet files, or a Hub repository; by default what can be had of `SOURCES`.
        skip_bad_images: leave out images of a folder or archive that cannot be decoded; the data then are the variant
            "without n unreadable images".
        variant: the name of data that are not the published ones.

    Returns:
        ``train``, ``validation`` and ``test`` with the columns ``image``, ``label``, ``place``, ``group``,
        ``image_id`` (the path in the archive; from Parquet without it, split and row), and ``mask`` where the folder
        has ``masks/`` (a PNG for each image, the bird not 0).

    Raises:
        UleError: nothing there, a wrong copy, or a bad file.
    """
    data = open_data(
        "waterbirds",
        data_dir,
        SOURCES,
        build=lambda root: _build(root, skip_bad_images),
        conform=lambda data: conform_columns(data, _FEATURES),
        licence=LICENCE,
    )
    return verify("waterbirds", data, PUBLISHED, variant, skip_bad_images)


def verify_metadata(file: str | os.PathLike[str], variant: str | None = None) -> Counts:
    """The counts that `metadata.csv` alone tells, without any image.

    Raises:
        UleError: they are not the published ones, or the file is bad.
    """
    table = read_metadata(Path(file))
    counts = {split: dict.fromkeys(GROUPS, 0) for split in SPLITS}
    for (split, label, place), size in table.groupby(["split", "label", "place"]).size().items():
        counts[split][GROUPS[2 * label + place]] = int(size)
    verify_counts("waterbirds", counts, PUBLISHED, variant)
    return counts


def read_metadata(file: Path) -> pd.DataFrame:
    """`metadata.csv` as ``image`` (path), ``label`` and ``place`` (indices), ``split``; the index says where a row is.

    Raises:
        UleError: a missing column, or a cell that is none of its values.
    """
    frame = read_csv(file)
    columns = {"img_filename": "image", "y": "label", "place": "place", "split": "split"}
    missing = [column for column in columns if column not in frame]
    if missing:
        there = first_few(frame.columns, len(frame.columns))
        raise UleError(f"{file} has no column '{missing[0]}' (there are {there}); get it anew")
    table = frame[list(columns)].rename(columns=columns)
    table.index = [f"{file.name} row {row} ({image})" for row, image in table["image"].items()]
    for column, values in {"label": (0, 1), "place": (0, 1), "split": SPLITS}.items():
        known = table[column].map(dict(zip("012", values, strict=False)))
        if known.isna().any():
            bad = table.index[known.isna()]
            cell = first_few(table[column][known.isna()], 1)
            raise UleError(f"{file}: '{cell}' is no {column}: {first_few(bad)}; get it anew")
        table[column] = known if column == "split" else known.astype(int)
    return table


@dataclass
class WaterbirdsConfig(datasets.BuilderConfig):
    """Whether images that cannot be decoded are left out."""

    skip_bad_images: bool = False


class Waterbirds(datasets.GeneratorBasedBuilder):
    """From the unpacked archive ``data_dir``; the rows keep the paths of its images, so it has to stay.

    Every image is decoded once, when the rows are first made.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = WaterbirdsConfig

    def _info(self) -> datasets.DatasetInfo:
        features = Features(**_FEATURES, group=ClassLabel(names=list(GROUPS)), image_id=Value("string"))
        if self._masks().is_dir():
            features["mask"] = Image()
        return datasets.DatasetInfo(features=features)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        root = Path(self.config.data_dir)
        table = checked_paths(root, read_metadata(root / _METADATA))
        table = table[decodable(root, table["image"], self.config.skip_bad_images)].copy()
        if self._masks().is_dir():
            self._check_masks(root, table)
        table["group"] = group_ids(table["label"], table, LABELS, {"place": PLACES})
        return [
            datasets.SplitGenerator(split, gen_kwargs={"rows": table[table["split"] == split].to_dict("records")})
            for split in SPLITS
        ]

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        root = Path(self.config.data_dir)
        for key, row in enumerate(rows):
            example = {column: row[column] for column in ("label", "place", "group")}
            example |= {"image": str(root / row["image"]), "image_id": row["image"]}
            if "mask" in self.info.features:
                example["mask"] = os.path.join(root, row["mask"])
            yield key, example

    def _check_masks(self, root: Path, table: pd.DataFrame) -> None:
        """Adds ``mask``, the path of a file that can be decoded."""
        names = [os.path.join("masks", os.path.splitext(image)[0] + ".png") for image in table["image"]]
        missing = [name for name in names if not os.path.isfile(root / name)]
        if missing:
            raise UleError(f"{root / missing[0]} is missing; add it, or move the folder of masks away")
        masks = pd.DataFrame({"image": names}, index=names)
        table["mask"] = checked_paths(root, masks)["image"].array
        decodable(root, table["mask"], skip_bad_images=False)

    def _masks(self) -> Path:
        return Path(self.config.data_dir) / "masks"


def _build(root: Path, skip_bad_images: bool) -> DatasetDict:
    root = folder_with(root, [_METADATA], "waterbirds")
    return build(Waterbirds, root, [root / _METADATA], skip_bad_images=skip_bad_images)
