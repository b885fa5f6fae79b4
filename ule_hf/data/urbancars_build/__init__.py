"""UrbanCars, composed from its sources as its authors' generator does (Li et al., CVPR 2023).

The lists, the order of the draws and the geometry are theirs; masks come from the same MaskFormer in transformers, and
pictures are scaled by Pillow, so that a copy built here has the same cars before the same scenes beside the same
objects, and other pixels at their edges.
"""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ule_hf.data import urbancars
from ule_hf.data.archives import building
from ule_hf.data.image_table import first_few
from ule_hf.data.urbancars import FOLDERS, GROUPS, LABELS, MASKS, folder_of, group_sizes
from ule_hf.data.urbancars_build.compose import compose, open_mask, open_rgb, save_whole
from ule_hf.data.urbancars_build.ingredients import Car, CoOccurObject, Sources, polygon_mask
from ule_hf.errors import UleError

logger = logging.getLogger(__name__)

__all__ = ["Picture", "Sources", "build_urbancars", "plan"]

_PLAN = "plan.sha256"


@dataclass(frozen=True)
class Picture:
    """What is composed: ``file`` is the image's path in the published layout."""

    file: str
    car: Car
    background: str
    co_occur_obj: CoOccurObject


def build_urbancars(
    sources: Sources, folder: Path, correlation: str = "0.95", seed: int = 0, num_threads: int | None = None
) -> None:
    """Composes all images and masks of UrbanCars into ``folder``, which appears when it is whole.

    When it is stopped, what is complete stays in ``<folder>.incomplete``, and the same call goes on from there. A
    second process that builds the same folder waits for the first.

    Args:
        correlation: of both shortcuts in training, 0.95 or 0.5.
        seed: of the draws; the published set has 0.
        num_threads: that compose at the same time; by default as many as the machine has cores.

    Raises:
        UleError: something is missing or cannot be read, the disk is full, or ``folder`` is there already.
    """
    pictures = plan(sources, correlation, seed)
    with building(folder, keep_parts=True) as temporary:
        if temporary is None:
            raise UleError(f"{folder} is there already; remove it, or give another folder")
        _discard_other_plan(temporary, pictures)
        for directory in {Path(picture.file).parent for picture in pictures}:
            (temporary / directory).mkdir(parents=True, exist_ok=True)
        missing = [picture for picture in pictures if not (temporary / picture.file).is_file()]
        bar = tqdm(total=len(pictures), initial=len(pictures) - len(missing), desc="composing", unit="image")
        threads = ThreadPoolExecutor(num_threads)  # Pillow works outside Python's lock
        try:
            for _ in threads.map(lambda picture: _compose(sources, picture, temporary), missing):
                bar.update()
        finally:
            threads.shutdown(cancel_futures=True)
            bar.close()
        (temporary / _PLAN).unlink()


def plan(sources: Sources, correlation: str = "0.95", seed: int = 0) -> list[Picture]:
    """All pictures, in the order of the authors' generator: every car, scene and object is used once.

    Raises:
        UleError: too few of them, or one is missing.
    """
    of_split = {split: float(correlation) if split == "train" else 0.5 for split in FOLDERS}
    sizes = {split: group_sizes(urbancars.IMAGES_PER_CLASS[split], of_split[split]) for split in FOLDERS}
    # of each class, background kind and object kind alike
    draws = {split: sum(list(sizes[split].values())[: len(GROUPS) // 2]) for split in FOLDERS}
    cars, backgrounds, objects = {}, {}, {}
    all_cars = sources.cars()
    for kind in LABELS:
        of_kind = [car for car in all_cars if car.body == kind]
        cars[kind] = _with_masks(sources.masks, _shuffled(of_kind, seed), sum(draws.values()))
        backgrounds[kind] = _shuffled(sources.backgrounds(kind), seed)
        objects[kind] = _shuffled(sources.co_occur_objects(kind), seed)
        for name, pool in {"cars": cars, "backgrounds": backgrounds, "co-occurring objects": objects}.items():
            if len(pool[kind]) < sum(draws.values()):
                raise UleError(
                    f"there are {len(pool[kind])} {kind} {name} instead of {sum(draws.values())}; complete the sources"
                )
    pictures = []
    start = 0
    for split, name in FOLDERS.items():
        part = slice(start, start + draws[split])
        start = part.stop
        next_of = [{kind: iter(pool[kind][part]) for kind in LABELS} for pool in (cars, backgrounds, objects)]
        for kinds, size in zip(product(LABELS, repeat=3), sizes[split].values(), strict=True):
            group = "obj-{}_bg-{}_co_occur_obj-{}".format(*kinds)
            for number in range(size):
                file = f"{folder_of(of_split[split])}/{name}/{group}/{number:03d}.jpg"
                pictures.append(Picture(file, *(next(pool[kind]) for pool, kind in zip(next_of, kinds, strict=True))))
    sources.check_files(*map(list, zip(*((p.car, p.background, p.co_occur_obj) for p in pictures), strict=True)))
    return pictures


def _shuffled(pool: Sequence[Any], seed: int) -> list[Any]:
    """As the authors' generator shuffles: the same order on every machine and for every version of NumPy."""
    order = list(range(len(pool)))
    random.Random(seed).shuffle(order)
    return [pool[i] for i in order]


def _with_masks(masks: Path, cars: list[Car], count: int) -> list[Car]:
    """The first ``count`` cars; one without a mask is replaced by the next that is left over, so that others stay."""

    def has_mask(car: Car) -> bool:
        return (masks / car.mask_file).is_file()

    without = [car.file for car in cars[:count] if not has_mask(car)]
    spare: Iterator[Car] = filter(has_mask, cars[count:])
    chosen = [car if has_mask(car) else next(spare, None) for car in cars[:count]]
    if None in chosen:
        raise UleError(f"{len(without)} cars have no mask in {masks}: {first_few(without)}; run the segmenter first")
    if without:
        logger.warning("%d cars have no mask and are replaced by others: %s", len(without), first_few(without))
    return chosen


def _discard_other_plan(temporary: Path, pictures: list[Picture]) -> None:
    digest = hashlib.sha256(repr((urbancars.IMAGE_SIZE, pictures)).encode()).hexdigest()
    file = temporary / _PLAN
    if not (file.is_file() and file.read_text() == digest):
        for path in temporary.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        file.write_text(digest)


def _compose(sources: Sources, picture: Picture, folder: Path) -> None:
    object_image = open_rgb(sources.coco / picture.co_occur_obj.file)
    composition = compose(
        open_rgb(sources.places / picture.background),
        object_image,
        polygon_mask(picture.co_occur_obj.polygons, object_image.size),
        open_rgb(sources.stanford_cars / picture.car.file),
        open_mask(sources.masks / picture.car.mask_file),
        urbancars.IMAGE_SIZE[0],
    )
    image = folder / picture.file
    for column, ending in MASKS.items():
        save_whole(getattr(composition, column), image.with_name(image.stem + ending))
    save_whole(composition.image, image)  # last: it tells a restart that its masks are there
