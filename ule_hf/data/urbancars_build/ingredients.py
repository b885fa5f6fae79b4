"""What UrbanCars is composed of, from the lists of its authors: cars, scenes, objects that occur with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import scipy.io
import scipy.ndimage

from ule_hf.data.image_table import first_few
from ule_hf.data.urbancars import LABELS
from ule_hf.errors import UleError

#: Pixels that an object of LVIS must have, of the city by its box and of the country by its mask.
_LEAST_AREA = {"urban": ("box", 4500), "country": ("mask", 3500)}


@dataclass(frozen=True)
class Car:
    """``file`` relative to the Stanford Cars folder; ``box`` (left, top, right, bottom), inclusive, in pixels."""

    file: str
    body: str
    box: tuple[int, int, int, int]

    @property
    def mask_file(self) -> str:
        """Relative to the folder of masks, as the authors' segmenter names it."""
        path = PurePath(self.file)
        return f"{path.parent}/{path.stem}_mask.png"


@dataclass(frozen=True)
class CoOccurObject:
    """``file`` relative to the COCO folder; ``polygons`` are lists of x, y, x, y ... in pixels."""

    file: str
    polygons: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Sources:
    """The folders of the ingredients.

    Args:
        lists: the authors' lists: `urbancars/meta_data.json`, `stanford_cars/{train,test}.txt` and `body_type.json`,
            `places/filter_objs/{train,val}/<scene>.txt`.
        stanford_cars: `cars_{train,test}/`, `devkit/cars_train_annos.mat` and `cars_test_annos_withlabels.mat`.
        masks: of the cars, `cars_{train,test}/00001_mask.png`; see
            :func:`ule_hf.data.urbancars_build.segment.segment_cars`.
        lvis: `lvis_v1_{train,val}.json`.
        coco: `{train,val}2017/`.
        places: `{train,val}/<scene>/`, of Places365 in 256 × 256 pixels.
    """

    lists: Path
    stanford_cars: Path
    masks: Path
    lvis: Path
    coco: Path
    places: Path

    def cars(self) -> list[Car]:
        """The cars of the lists in the order of their annotations, training first."""
        body_types = _read_json(self.lists / "stanford_cars" / "body_type.json")
        annotations = {
            "train": self.stanford_cars / "devkit" / "cars_train_annos.mat",
            "test": self.stanford_cars / "cars_test_annos_withlabels.mat",
        }
        cars = []
        for split, file in annotations.items():
            listed = set(_read_list(self.lists / "stanford_cars" / f"{split}.txt"))
            for row in _read_annotations(file):
                if row["fname"] in listed:
                    body = LABELS[body_types[int(row["class"]) - 1]]
                    box = tuple(int(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2"))
                    cars.append(Car(f"cars_{split}/{row['fname']}", body, box))
        return cars

    def backgrounds(self, kind: str) -> list[str]:
        """Scenes relative to the Places folder, in the order of the lists."""
        return [
            f"{split}/{scene['name']}/{name}"
            for scene in self._classes["background"][kind]
            for split in ("train", "val")
            for name in sorted(_read_list(self.lists / "places" / "filter_objs" / split / f"{scene['name']}.txt"))
        ]

    def co_occur_objects(self, kind: str) -> list[CoOccurObject]:
        """Objects that are large and in one piece, by class and then in the order of LVIS."""
        return [
            found
            for category in self._classes["co_occur_object"][kind]
            for found in self._objects_by_category.get(category["id"], [])
        ]

    def check_files(self, cars: list[Car], backgrounds: list[str], objects: list[CoOccurObject]) -> None:
        """Raises UleError where one of these is not there (an existing name is no proof of a readable picture)."""
        files = [self.stanford_cars / car.file for car in cars]
        files += [self.places / background for background in backgrounds]
        files += [self.coco / found.file for found in objects]
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise UleError(f"{len(missing)} files are missing: {first_few(missing)}; complete the download")

    @cached_property
    def _classes(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Factor -> urban or country -> classes, each with its name and id."""
        file = self.lists / "urbancars" / "meta_data.json"
        factors = _read_json(file)
        try:
            return {
                factor: {kind["name"]: kind["class_list"] for kind in factors[factor]}
                for factor in ("background", "co_occur_object")
            }
        except (KeyError, TypeError) as error:
            raise UleError(f"{file} lists no classes of background and co_occur_object; get it anew") from error

    @cached_property
    def _objects_by_category(self) -> dict[int, list[CoOccurObject]]:
        kinds = {
            category["id"]: kind
            for kind, categories in self._classes["co_occur_object"].items()
            for category in categories
        }
        found: dict[int, list[CoOccurObject]] = {category: [] for category in kinds}
        for split in ("train", "val"):
            file = self.lvis / f"lvis_v1_{split}.json"
            content = _read_json(file)
            try:
                images = {image["id"]: image for image in content["images"]}
                for annotation in content["annotations"]:
                    category = annotation["category_id"]
                    if category in kinds and _is_large(annotation, *_LEAST_AREA[kinds[category]]):
                        image = images[annotation["image_id"]]
                        polygons = tuple(tuple(polygon) for polygon in annotation["segmentation"])
                        if _in_one_piece(polygons, (image["width"], image["height"])):
                            found[category].append(CoOccurObject(_coco_file(image, split), polygons))
            except (KeyError, TypeError) as error:
                raise UleError(f"{file} is no LVIS v1 annotation file ({error!r} is missing); get it anew") from error
        return found


def polygon_mask(polygons: tuple[tuple[float, ...], ...], size: tuple[int, int]) -> PIL.Image.Image:
    """A mask (mode L, 0 or 255) of ``size`` (width, height) that is 255 inside each polygon."""
    mask = PIL.Image.new("L", size)
    draw = PIL.ImageDraw.Draw(mask)
    for polygon in polygons:
        draw.polygon(polygon, fill=255)
    return mask


def _is_large(annotation: dict[str, Any], measure: str, least: int) -> bool:
    width, height = annotation["bbox"][2:]
    return (width * height if measure == "box" else annotation["area"]) >= least


def _in_one_piece(polygons: tuple[tuple[float, ...], ...], size: tuple[int, int]) -> bool:
    """Pixels that touch at a corner are of one piece."""
    _, pieces = scipy.ndimage.label(np.asarray(polygon_mask(polygons, size)), structure=np.ones((3, 3)))
    return pieces == 1


def _coco_file(image: dict[str, Any], split: str) -> str:
    # LVIS drew its validation images from COCO's training images too: the address says from where
    folder = PurePath(image["coco_url"]).parent.name if "coco_url" in image else f"{split}2017"
    return f"{folder}/{image['id']:012d}.jpg"


def _read_annotations(file: Path) -> Iterator[dict[str, Any]]:
    columns = ("fname", "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    try:
        for annotation in np.atleast_1d(scipy.io.loadmat(file, squeeze_me=True)["annotations"]):
            row = {column: annotation[column] for column in columns}
            _check_name(str(row["fname"]), file)
            yield row
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UleError):
            raise
        raise UleError(f"{file} cannot be read ({error}); get Stanford Cars' annotations anew") from error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UleError(f"{file} cannot be read ({error}); get it anew") from error


def _read_list(file: Path) -> list[str]:
    try:
        names = file.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise UleError(f"{file} cannot be read ({error}); get the authors' lists anew") from error
    for name in names:
        _check_name(name, file)
    return names


def _check_name(name: str, file: Path) -> None:
    if PurePath(name).name != name:
        raise UleError(f"{file} names '{name}', which leaves the folder of the images; get it anew")
