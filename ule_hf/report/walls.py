"""Where the trained models of a comparison look in test images: walls of pictures, and shares on the object."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ule_hf.arguments import DataArguments
from ule_hf.card import RESULTS_FILE, read_json
from ule_hf.errors import UleError
from ule_hf.experiment import load_data
from ule_hf.report.charts import Picture, embedded
from ule_hf.report.explain import Pair, describe, explain_pixels, load_pair
from ule_hf.report.objects import as_seen, object_masks
from ule_hf.report.pictures import draw, strongest_region
from ule_hf.report.runs import data_arguments
from ule_hf.report.saliency import BATCH, MapKind, area, saliency, share_on_object
from ule_hf.seeds import named_seed
from ule_hf.variant import Attribution

logger = logging.getLogger(__name__)

#: Test images of each group that are looked at for disagreement.
OF_EACH_GROUP = 48
#: Images of another class at the ends of the paths from one.
PARTNERS = 2


class ModelFolder(NamedTuple):
    """What a comparison kept of a run: ``DIR/bed/method/seed``."""

    path: Path
    bed: str
    method: str
    seed: int


@dataclass(frozen=True)
class Wall:
    """Pictures of one pair, those that its student and teacher disagree on most first."""

    method: str
    seed: int
    caption: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Share:
    """Mean share of attribution on the object over some images, for one model of one run."""

    method: str
    model: str
    seed: int
    by_kind: dict[MapKind, float | None]
    area: float
    images: int


def model_folders(root: Path) -> list[ModelFolder]:
    """The complete runs under ``root``, by bed, method and seed.

    Raises:
        UleError: there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise UleError(f"--models {root}: there is no such folder; give what ule-hf compare --keep_models kept")
    files = sorted(root.glob(f"*/*/*/{RESULTS_FILE}"))
    found = [
        ModelFolder(f.parent, *f.parent.parts[-3:-1], int(f.parent.name)) for f in files if f.parent.name.isdigit()
    ]
    if not found:
        raise UleError(f"--models {root}: holds no bed/method/seed/{RESULTS_FILE}; run ule-hf compare --keep_models")
    return sorted(found, key=lambda folder: folder[1:])


def test_images(folder: ModelFolder) -> tuple[Dataset, DataArguments]:
    """The test split that the run in ``folder`` was tested on, built again from its recorded command.

    Raises:
        UleError: the command is not there, or the data are not at hand.
    """
    command = read_json(folder.path / RESULTS_FILE).get("run", {}).get("command")
    if not command:
        raise UleError(f"{folder.path / RESULTS_FILE} records no command, so its data cannot be built again")
    data_args = data_arguments(command)
    return _test_images(json.dumps(asdict(data_args)), folder.seed), data_args


@lru_cache(maxsize=8)
def _test_images(data_args: str, seed: int) -> Dataset:
    """What the methods of a bed share is built once, though their commands differ."""
    return load_data(DataArguments(**json.loads(data_args)), seed)["test"]


def wall(folder: ModelFolder, test: Dataset, count: int, attribution: Attribution | None = None) -> Wall | None:
    """Pictures on which student and teacher disagree, from the groups where they disagree most; None without a student.

    Disagreement is the difference of the right class's probability, of a group its mean over `OF_EACH_GROUP` images.
    Maps are those that the pair was trained with, or of ``attribution``.
    """
    pair = load_pair(folder.path)
    if pair.student is None:
        return None
    rows = _some_of_each_group(test, OF_EACH_GROUP, folder.seed)
    pixels, labels, groups = _tensors(pair, test, rows)
    right = [_probabilities(model, pixels)[torch.arange(len(labels)), labels] for model in pair.models().values()]
    disagreement = (right[0] - right[1]).abs().numpy()
    chosen = most_disputed(disagreement, groups.numpy(), count)
    kind = attribution or pair.trained_with[0]
    grid = pair.trained_with[1] if kind == pair.trained_with[0] else None
    references = partners_of(pixels, labels, chosen, folder.seed) if kind == "path" else None
    classes, names = test.features["label"].names, test.features["group"].names
    explained = explain_pixels(
        pair,
        pixels[chosen],
        [str(test[int(rows[i])]["image_id"]) for i in chosen],
        kind,
        grid,
        references,
        describe(kind, grid, f"{PARTNERS} pictures of another class"),
        truths=[classes[labels[i]] for i in chosen],
    )
    pictures = []
    for one, i in zip(explained, chosen, strict=True):
        group = names[groups[i]]
        says = "; ".join(f"{view.name} says {view.says()}" for view in one.views)
        looks = ", ".join(f"the {view.name}'s map is strongest {strongest_region(view.map)}" for view in one.views)
        figure = draw(one, scale=1.7, with_caption=False)
        pictures.append(Picture(embedded(figure, "webp"), f"Picture of {group}: {looks}.", f"{group}: {says}."))
    return Wall(folder.method, folder.seed, explained[0].caption, pictures)


def shares(folder: ModelFolder, test: Dataset, data_args: DataArguments, count: int) -> list[Share]:
    """For each model of a run the mean share of its attribution on the object; empty for data without masks.

    Over ``count`` test images, as many of each group, the same for each method. Grad-CAM is None for a model without
    convolutions, and any kind where all maps are zero.
    """
    each = math.ceil(count / len(set(test.with_format(None)["group"])))
    rows = _some_of_each_group(test, each, folder.seed)
    chosen = test.select(rows)
    masks = object_masks(data_args, chosen["image"], chosen["image_id"])
    if masks is None:
        return []
    pair = load_pair(folder.path)
    pixels, labels, _ = _tensors(pair, test, rows)
    on_object = as_seen(masks, pair.transform)
    references = partners_of(pixels, labels, range(len(labels)), folder.seed)
    models = pair.models() if pair.student is not None else {"model": pair.teacher}
    found = []
    for name, classifier in models.items():
        by_kind: dict[MapKind, float | None] = {}
        for kind in ("gradient", "path", "grad_cam"):
            try:
                maps = saliency(classifier, pixels, kind, references)
            except UleError as error:
                logger.warning("%s: %s", folder.path, error)
                by_kind[kind] = None
                continue
            of_images = share_on_object(maps, on_object)
            by_kind[kind] = None if np.isnan(of_images).all() else float(np.nanmean(of_images))
        found.append(Share(folder.method, name, folder.seed, by_kind, float(area(on_object).mean()), len(rows)))
    return found


def most_disputed(disagreement: np.ndarray, groups: np.ndarray, count: int) -> list[int]:
    """Rows to show: of the groups, from the most disputed on average, by turns the most disputed image.

    >>> most_disputed(np.array([0.1, 0.9, 0.8, 0.3]), np.array([0, 1, 1, 0]), 3)
    [1, 3, 2]
    """
    names = sorted(set(groups.tolist()), key=lambda group: -disagreement[groups == group].mean())
    ranked = [sorted(np.flatnonzero(groups == group), key=lambda row: -disagreement[row]) for group in names]
    return [int(rows[turn]) for turn in range(len(groups)) for rows in ranked if turn < len(rows)][:count]


def partners_of(pixels: Tensor, labels: Tensor, rows: Sequence[int], seed: int) -> Tensor:
    """For each of ``rows`` `PARTNERS` images of another class, ``[len(rows), PARTNERS, C, H, W]``.

    Raises:
        UleError: the images are of one class only.
    """
    generator = torch.Generator().manual_seed(named_seed(seed, "report", "partners"))
    found = []
    for row in rows:
        others = (labels != labels[row]).nonzero().flatten()
        if not len(others):
            raise UleError("the test images are of one class only, so there are no paths to another")
        found.append(others[torch.randint(len(others), (PARTNERS,), generator=generator)])
    return pixels[torch.stack(found)]


def _some_of_each_group(test: Dataset, each: int, seed: int) -> list[int]:
    groups = np.array(test.with_format(None)["group"])
    rng = np.random.default_rng(named_seed(seed, "report", "images"))
    return [int(row) for group in np.unique(groups) for row in rng.permutation(np.flatnonzero(groups == group))[:each]]


def _tensors(pair: Pair, test: Dataset, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, labels and groups of ``rows``."""
    parts = [pair.transform(test[list(rows[i : i + BATCH])]) for i in range(0, len(rows), BATCH)]
    pixels, labels, groups = (torch.cat([part[key] for part in parts]) for key in ("pixel_values", "labels", "group"))
    return pixels, labels, groups


def _probabilities(classifier, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([classifier(pixel_values=part).logits.softmax(dim=1) for part in pixels.split(BATCH)])


def by_bed(folders: Sequence[ModelFolder]) -> Iterator[tuple[str, list[ModelFolder]]]:
    """The folders of each bed."""
    for bed in dict.fromkeys(folder.bed for folder in folders):
        yield bed, [folder for folder in folders if folder.bed == bed]
