from __future__ import annotations

import errno
import json
import os
import random
import re
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.data.urbancars_sources import (
    OBJECTS,
    PHOTOGRAPHS,
    annotation,
    made,
    photographs,
    save,
    write_json,
    write_sources,
)
from ule_hf.data import urbancars, urbancars_build
from ule_hf.data.urbancars_build import Sources, build_urbancars, plan
from ule_hf.data.urbancars_build.compose import compose, save_whole
from ule_hf.data.urbancars_build.ingredients import _in_one_piece
from ule_hf.data.urbancars_build.segment import CarSegmenter, best_segment, segment_cars
from ule_hf.data.verify import label_of
from ule_hf.errors import UleError

LISTS = Path(__file__).parents[3] / "shared" / "data" / "metadata" / "urbancars"


@pytest.fixture(autouse=True)
def _small(monkeypatch, cache):
    monkeypatch.setattr(urbancars, "IMAGES_PER_CLASS", {"train": 20, "validation": 4, "test": 4})
    monkeypatch.setattr(urbancars, "IMAGE_SIZE", (64, 64))
    monkeypatch.setattr(urbancars, "PUBLISHED", {c: urbancars._published(c) for c in urbancars.PUBLISHED})
    monkeypatch.setattr(urbancars, "IMAGE_SIZE", (64, 64))


#: Of each class: 18 + 1 + 1 + 1 in training, 4 in validation, 4 in test.
DRAWN = 29


@pytest.fixture
def sources(tmp_path):
    return write_sources(tmp_path, 16, made())


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "pictures",
    [
        made,
        pytest.param(photographs, marks=pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no photographs here")),
    ],
)
def test_end_to_end(tmp_path, pictures):
    sources = write_sources(tmp_path, 16, pictures())
    build_urbancars(sources, tmp_path / "built")
    data = urbancars.load(tmp_path / "built")
    assert label_of(data) == "urbancars 0.95"
    assert {split: len(data[split]) for split in data} == {"train": 42, "validation": 8, "test": 8}
    for row in (*data["train"], *data["test"]):
        assert row["image"].size == row["mask"].size == row["co_occur_obj_mask"].size == (64, 64)
        left, top, right, bottom = row["mask"].getbbox()
        assert max(right - left, bottom - top) == 32
        assert (left + right) // 2 == (top + bottom) // 2 == 32
        left, top, right, bottom = row["co_occur_obj_mask"].getbbox()
        assert (right - left, left, (top + bottom) // 2) == (16, 48, 32)
    assert not list((tmp_path / "built").rglob("*.part"))
    assert {path.name for path in (tmp_path / "built").iterdir()} == {
        "bg-0.95_co_occur_obj-0.95",
        "bg-0.5_co_occur_obj-0.5",
    }


def test_training_without_a_shortcut(sources, tmp_path):
    build_urbancars(sources, tmp_path / "built", correlation="0.5")
    assert label_of(urbancars.load(tmp_path / "built", 0.5)) == "urbancars 0.5"


def test_pixels_come_from_where_the_plan_says(sources, tmp_path):
    build_urbancars(sources, tmp_path / "built")
    for picture in plan(sources)[::9]:
        image = PIL.Image.open(tmp_path / "built" / picture.file)
        background = PIL.Image.open(sources.places / picture.background)
        # the corners are the scene's, but for the JPEG encoder's second pass
        for corner in ((0, 0, 8, 8), (0, 56, 8, 64)):
            difference = np.subtract(image.crop(corner), background.crop(corner), dtype=np.int16)
            assert np.abs(difference).mean() < 25


def test_every_ingredient_is_used_once_and_is_of_the_right_kind(sources):
    pictures = plan(sources)
    assert len(pictures) == 2 * DRAWN
    for column in ("car", "background", "co_occur_obj"):
        assert len({getattr(picture, column) for picture in pictures}) == len(pictures)
    for picture in pictures:
        obj, bg, co = re.findall(r"-([a-z]+)", picture.file.split("/")[2])
        assert picture.car.body == obj
        assert picture.background.split("/")[2].startswith(bg)
        assert int(picture.co_occur_obj.file.split("/")[1][:12]) // 1000 in OBJECTS[co]


def test_draws_are_those_of_the_authors_generator(sources):
    """Its rule: the classes' scenes one after the other, shuffled by `random.Random(0)`, dealt in order."""
    scenes = sources.backgrounds("urban")
    assert scenes[0] == "train/alley/urban_train_00000000.jpg"
    assert [scene.split("/")[:2] for scene in scenes[::16]] == [
        ["train", "alley"],
        ["val", "alley"],
        ["train", "street"],
        ["val", "street"],
    ]
    order = list(range(len(scenes)))
    random.Random(0).shuffle(order)
    dealt = [picture.background for picture in plan(sources) if "bg-urban" in picture.file]
    assert dealt == [scenes[i] for i in order[:DRAWN]]
    assert plan(sources, seed=1) != plan(sources) == plan(sources, seed=0)


def test_lists_leave_out_cars_and_scenes(sources):
    cars = sources.cars()
    assert len(cars) == 2 * 3 * 16  # of 19 of each model
    assert [car.body for car in cars[:3]] == ["country", "urban", "urban"]
    assert not any("unlisted" in scene for kind in ("urban", "country") for scene in sources.backgrounds(kind))


def test_objects_are_large_and_in_one_piece(sources):
    file = sources.lvis / "lvis_v1_val.json"
    content = json.loads(file.read_text())
    image = content["images"][0]["id"]
    content["annotations"] = [
        annotation(image, 10, 75, 60),  # 4500 pixels: just enough
        annotation(image, 10, 75, 59),
        annotation(image, 20, 70, 50),  # 3500
        annotation(image, 20, 70, 49),
        annotation(image, 20, 40, 60, second=50),  # two pieces
        annotation(image, 20, 40, 60, second=45),  # that touch
    ]
    write_json(file, content)
    assert len(sources.co_occur_objects("urban")) == 32 + 1
    assert len(sources.co_occur_objects("country")) == 16 + 2
    square, at_its_corner, apart = (0, 0, 3, 0, 3, 3, 0, 3), (4, 4, 7, 4, 7, 7, 4, 7), (5, 5, 7, 5, 7, 7, 5, 7)
    assert _in_one_piece((square, at_its_corner), (9, 9))
    assert not _in_one_piece((square, apart), (9, 9))


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_stopped_midway_and_restarted_with_the_identical_result(sources, tmp_path, monkeypatch, stop):
    build_urbancars(sources, tmp_path / "whole")
    saved = []

    def save_some(image, path):
        if len(saved) == 100:  # of 3 * 58 files: between the masks of a picture and the picture
            raise stop
        save_whole(image, path)
        saved.append(path)

    monkeypatch.setattr(urbancars_build, "save_whole", save_some)
    with pytest.raises((UleError, KeyboardInterrupt)):
        build_urbancars(sources, tmp_path / "built", num_threads=1)
    assert not (tmp_path / "built").exists()
    kept = list((tmp_path / "built.incomplete").rglob("*.jpg"))
    assert len(kept) == 33

    composed = []
    monkeypatch.setattr(urbancars_build, "save_whole", save_whole)
    monkeypatch.setattr(urbancars_build, "compose", lambda *args: composed.append(1) or compose(*args))
    build_urbancars(sources, tmp_path / "built")
    assert len(composed) == 2 * DRAWN - 33
    assert contents(tmp_path / "built") == contents(tmp_path / "whole")
    assert not (tmp_path / "built.incomplete").exists()


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    def full(self, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    with pytest.raises(UleError, match=r"disk is full.*what is complete is kept"):
        save_whole(PIL.Image.new("RGB", (2, 2)), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_parts_of_another_plan_are_discarded(sources, tmp_path, monkeypatch):
    build_urbancars(sources, tmp_path / "whole", seed=1)
    count = iter(range(50))
    monkeypatch.setattr(urbancars_build, "save_whole", lambda *args: (next(count), save_whole(*args)))
    with pytest.raises((StopIteration, RuntimeError)):
        build_urbancars(sources, tmp_path / "built", num_threads=1)
    monkeypatch.setattr(urbancars_build, "save_whole", save_whole)
    build_urbancars(sources, tmp_path / "built", seed=1)
    assert contents(tmp_path / "built") == contents(tmp_path / "whole")


def test_two_builds_into_one_folder_at_once(sources, tmp_path):
    outcomes = []

    def build():
        try:
            build_urbancars(sources, tmp_path / "built")
            outcomes.append("built")
        except UleError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    built, refused = sorted(outcomes, key=len)
    assert built == "built" and "is there already" in refused
    assert len(list((tmp_path / "built").rglob("*.jpg"))) == 2 * DRAWN


def test_a_car_without_a_mask_is_replaced_and_all_others_stay(sources):
    before = plan(sources)
    (sources.masks / before[5].car.mask_file).unlink()
    after = plan(sources)
    assert [i for i in range(len(before)) if before[i] != after[i]] == [5]
    assert after[5].car.body == before[5].car.body
    for mask in sources.masks.rglob("*.png"):
        mask.unlink()
    with pytest.raises(UleError, match=r"cars have no mask.*run the segmenter"):
        plan(sources)


def first(sources):
    return plan(sources)[0]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: truncate(s.places / first(s).background), r"alley|street.*cannot be decoded"),
        (lambda s: truncate(s.coco / first(s).co_occur_obj.file), r"2017/.*cannot be decoded"),
        (lambda s: truncate(s.stanford_cars / first(s).car.file), r"cars_t.*jpg cannot be decoded"),
        (lambda s: save(PIL.Image.new("L", (9, 9)), s.masks / first(s).car.mask_file), "is an empty mask"),
        (lambda s: (s.places / first(s).background).unlink(), "1 files are missing"),
        (lambda s: truncate(s.lvis / "lvis_v1_val.json"), r"lvis_v1_val\.json cannot be read"),
        (lambda s: write_json(s.lvis / "lvis_v1_val.json", {"images": []}), "is no LVIS v1 annotation file"),
        (lambda s: truncate(s.stanford_cars / "devkit" / "cars_train_annos.mat"), r"cars_train_annos\.mat cannot be"),
        (lambda s: (s.lists / "stanford_cars" / "test.txt").unlink(), r"test\.txt cannot be read"),
        (lambda s: (s.lists / "stanford_cars" / "test.txt").write_text("../../x.jpg"), r"x\.jpg', which leaves"),
        (lambda s: (s.lists / "stanford_cars" / "test.txt").write_text(""), "there are 16 country cars instead of 29"),
    ],
)
def test_bad_sources(sources, tmp_path, damage, message):
    damage(sources)
    with pytest.raises(UleError, match=message):
        build_urbancars(sources, tmp_path / "built")
    assert not (tmp_path / "built").exists()


def test_segmenter_gives_a_mask_in_the_size_of_the_picture(segmenter):
    masks = [segmenter(image, mask.getbbox()) for image, mask in islice(made(), 6)]
    found = [mask for mask in masks if mask is not None]
    assert found
    for mask in found:
        assert mask.shape == (80, 96) and mask.dtype == bool and mask.any() and not mask.all()
    segmenter.car_ids, ids = {0}, segmenter.car_ids  # nothing is a person
    assert segmenter(next(made())[0], (0, 0, 95, 79)) is None
    segmenter.car_ids = ids


def test_no_segment_is_better_than_a_wrong_one():
    everywhere = np.ones((4, 4), dtype=int)
    assert best_segment(everywhere, [1], (0, 0, 3, 3)) is None
    elsewhere = np.zeros((4, 4), dtype=int)
    elsewhere[0, 0] = 1
    assert best_segment(elsewhere, [1], (2, 2, 3, 3)) is None
    assert best_segment(elsewhere, [1], (0, 0, 1, 1)).sum() == 1


def test_segmenter_must_know_cars(segmenter):
    segmenter.model.config.id2label, names = {0: "cat"}, segmenter.model.config.id2label
    with pytest.raises(UleError, match="knows neither car nor truck"):
        CarSegmenter(segmenter.model, segmenter.processor)
    segmenter.model.config.id2label = names


def test_cars_are_segmented_once(sources, tmp_path):
    cars = sources.cars()[:4]
    calls = []

    def rectangle(image, box):
        calls.append(box)
        if len(calls) == 2:
            return None
        left, top, right, bottom = box
        mask = np.zeros((image.height, image.width), dtype=bool)
        mask[top : bottom + 1, left : right + 1] = True
        return mask

    segment_cars(cars, sources.stanford_cars, tmp_path / "new", rectangle)
    assert [(tmp_path / "new" / car.mask_file).is_file() for car in cars] == [True, False, True, True]
    mask = PIL.Image.open(tmp_path / "new" / cars[0].mask_file)
    left, top, right, bottom = mask.getbbox()
    assert (left, top, right - 1, bottom - 1) == cars[0].box
    assert np.array_equal(np.asarray(mask), np.asarray(PIL.Image.open(sources.masks / cars[0].mask_file)))
    segment_cars(cars, sources.stanford_cars, tmp_path / "new", rectangle)
    assert len(calls) == 5  # the one that was not found is tried again
    assert (tmp_path / "new" / cars[1].mask_file).is_file()


@pytest.mark.skipif(not LISTS.is_dir(), reason="the authors' lists are not here")
def test_the_authors_lists():
    sources = Sources(LISTS, *[Path(os.devnull)] * 5)
    assert len(sources.backgrounds("urban")) == 6770
    assert len(sources.backgrounds("country")) == 6872
    assert sources.backgrounds("country")[0] == "train/desert_road/00000002.jpg"
    assert len(sources._classes["co_occur_object"]["urban"]) == 5
