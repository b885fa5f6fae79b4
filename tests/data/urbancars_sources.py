"""The sources of UrbanCars in miniature: Stanford Cars, masks, LVIS, COCO, Places, and the authors' lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import scipy.io

from ule_hf.data.urbancars_build import Sources

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "urbancars_like"
SCENES = {"urban": ["alley", "street"], "country": ["desert_road"]}
OBJECTS = {"urban": [10, 11], "country": [20]}
#: Body types of the three car models.
BODY_TYPES = [1, 0, 0]


def photographs():
    """Endless pairs of a real picture and the mask of the car in it."""
    while True:
        for image in sorted(PHOTOGRAPHS.glob("bg-0.5_co_occur_obj-0.5/val/*/*.jpg")):
            yield PIL.Image.open(image).convert("RGB"), PIL.Image.open(image.with_name(f"{image.stem}_mask.png"))


def made():
    """Endless pairs of a noisy picture and a mask."""
    rng = np.random.default_rng(0)
    while True:
        mask = np.zeros((80, 96), dtype=np.uint8)
        top, left = rng.integers(5, 20, 2)
        mask[top : top + 40, left : left + 60] = 255
        yield PIL.Image.fromarray(rng.integers(0, 255, (80, 96, 3), dtype=np.uint8)), PIL.Image.fromarray(mask)


def write_sources(root, count, pictures):
    """``count`` cars, scenes and objects of each kind (and some that the lists leave out), from ``pictures``."""
    sources = Sources(*(root / name for name in ("lists", "stanford_cars", "masks", "lvis", "coco", "places")))
    _write_cars(sources, count, pictures)
    _write_places(sources, count, pictures)
    _write_objects(sources, count, pictures)
    return sources


def _write_cars(sources, count, pictures):
    folder = sources.lists / "stanford_cars"
    write_json(folder / "body_type.json", BODY_TYPES)
    names = ("fname", "class", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    for split, file in {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}.items():
        rows, listed = [], []
        for i in range(count + 3):  # of three models, one is of the country: thrice as many as needed in both splits
            for model in (1, 2, 3):
                image, mask = next(pictures)
                name = f"{3 * i + model:05d}"
                left, top, right, bottom = mask.getbbox()
                rows.append((f"{name}.jpg", model, left, top, right - 1, bottom - 1))
                save(image, sources.stanford_cars / f"cars_{split}" / f"{name}.jpg")
                if i < count:
                    listed.append(f"{name}.jpg")
                    save(mask, sources.masks / f"cars_{split}" / f"{name}_mask.png")
        (folder / f"{split}.txt").write_text("\n".join(listed) + "\n")
        path = sources.stanford_cars / file
        path.parent.mkdir(parents=True, exist_ok=True)
        annotations = np.array(rows, dtype=[(name, object) for name in names])
        scipy.io.savemat(path, {"annotations": annotations})


def _write_places(sources, count, pictures):
    for kind, scenes in SCENES.items():
        for scene in scenes:
            for split in ("train", "val"):
                names = [f"{kind}_{split}_{i:08d}.jpg" for i in range(count)]
                for name in [*names, "unlisted.jpg"]:
                    save(next(pictures)[0].resize((64, 64)), sources.places / split / scene / name)
                file = sources.lists / "places" / "filter_objs" / split / f"{scene}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("\n".join(reversed(names)) + "\n")


def _write_objects(sources, count, pictures):
    factors = {
        "background": [
            {"name": kind, "class_list": [{"name": scene, "id": 0} for scene in scenes]}
            for kind, scenes in SCENES.items()
        ],
        "co_occur_object": [
            {"name": kind, "class_list": [{"name": str(i), "id": i} for i in ids]} for kind, ids in OBJECTS.items()
        ],
    }
    write_json(sources.lists / "urbancars" / "meta_data.json", factors)
    for split in ("train", "val"):
        images, annotations = [], []
        for category in (10, 20, 11, 99):
            for i in range(count):
                image_id = 1000 * category + 2 * i + (split == "val")
                # as in LVIS, some validation images are COCO's training images
                folder = "train2017" if i % 2 else f"{split}2017"
                image = next(pictures)[0].resize((96, 80))
                save(image, sources.coco / folder / f"{image_id:012d}.jpg")
                images.append({"id": image_id, "width": 96, "height": 80, "coco_url": f"http://x/{folder}/{i}.jpg"})
                annotations.append(annotation(image_id, category))
        write_json(sources.lvis / f"lvis_v1_{split}.json", {"images": images, "annotations": annotations})


def annotation(image_id, category, width=75, height=60, second=None):
    """A rectangle at (5, 5) as LVIS writes it; ``second`` is the left edge of another, of the same size."""
    polygons = [[5, 5, 5 + width, 5, 5 + width, 5 + height, 5, 5 + height]]
    if second is not None:
        polygons.append([second, 5, second + width, 5, second + width, 5 + height, second, 5 + height])
    box, area = [5, 5, width, height], len(polygons) * width * height
    return {"image_id": image_id, "category_id": category, "segmentation": polygons, "bbox": box, "area": area}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
