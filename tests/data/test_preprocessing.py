from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from torchvision.transforms import v2
from transformers import ViTImageProcessor

from ule_hf.data.preprocessing import PUBLISHED, cache_resized, transforms_of
from ule_hf.data.transforms import EvalTransform, TrainTransform
from ule_hf.errors import UleError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def processor(height=224, width=224):
    return ViTImageProcessor(size={"height": height, "width": width}, image_mean=MEAN, image_std=STD)


def photograph(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def png(image, format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format)
    return {"bytes": buffer.getvalue(), "path": None}


def dataset_of(images, name):
    features = Features(image=Image(), label=Value("int64"), group=Value("int64"), image_id=Value("string"))
    numbers = list(range(len(images)))
    rows = {"image": [png(i) for i in images], "label": numbers, "group": numbers, "image_id": list(map(str, numbers))}
    dataset = Dataset.from_dict(rows, features=features)
    dataset.info.dataset_name = name
    return dataset


def evaluated(name, image, size=224):
    _, evaluation = transforms_of(dataset_of([image], name), processor(size, size), "published", seed=0)
    return evaluation({"image": [image], "label": [1], "group": [1]})["pixel_values"][0]


def normalised(image):
    return (
        v2.functional.to_dtype(v2.functional.to_image(image), torch.float32, scale=True)
        - torch.tensor(MEAN)[:, None, None]
    ) / torch.tensor(STD)[:, None, None]


def test_waterbirds_evaluation():
    """As in group_DRO: to 256 x 256 whatever the aspect, then 224 of the middle."""
    image = photograph(500, 300)
    expected = image.resize((256, 256), PIL.Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    torch.testing.assert_close(evaluated("waterbirds", image), normalised(expected))
    assert evaluated("waterbirds", image, size=96).shape == (3, 96, 96)


def test_celeba_evaluation():
    """As in group_DRO: the middle 178 x 178, then 224."""
    image = photograph(178, 218)
    expected = image.crop((0, 20, 178, 198)).resize((224, 224), PIL.Image.Resampling.BILINEAR)
    torch.testing.assert_close(evaluated("celeba", image), normalised(expected))


@pytest.mark.parametrize(("name", "size"), [("spawrious", 224), ("urbancars", 256)])
def test_pictures_of_the_published_size_are_not_resampled(name, size):
    image = photograph(size, size)
    torch.testing.assert_close(evaluated(name, image, size), normalised(image))


@pytest.mark.parametrize("name", PUBLISHED)
def test_training(name):
    images = [photograph(178, 218, seed) for seed in range(6)]
    dataset = dataset_of(images, name)
    train, evaluation = transforms_of(dataset, processor(32, 32), "published", seed=3)
    batch = dataset[:]
    first, again = train(batch), train(batch)
    assert first["pixel_values"].shape == (6, 3, 32, 32)
    assert first["group"].tolist() == first["labels"].tolist() == list(range(6))
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert not torch.allclose(first["pixel_values"], evaluation(batch)["pixel_values"])
    train.set_epoch(1)
    assert not torch.equal(first["pixel_values"], train(batch)["pixel_values"])
    copied = pickle.loads(pickle.dumps(train))
    assert torch.equal(copied(batch)["pixel_values"], train(batch)["pixel_values"])
    assert torch.equal(pickle.loads(pickle.dumps(evaluation))(batch)["pixel_values"], evaluation(batch)["pixel_values"])


def test_urbancars_training_only_mirrors():
    image = photograph(32, 32)
    dataset = dataset_of([image], "urbancars")
    train, evaluation = transforms_of(dataset, processor(32, 32), "published", seed=0)
    plain = evaluation(dataset[:])["pixel_values"]
    seen = set()
    for epoch in range(20):
        train.set_epoch(epoch)
        pixels = train(dataset[:])["pixel_values"]
        mirrored = torch.equal(pixels, plain.flip(-1))
        assert mirrored or torch.equal(pixels, plain)
        seen.add(mirrored)
    assert seen == {True, False}


def test_other_augmentations_are_those_of_any_data():
    dataset = dataset_of([photograph(9, 9)], None)
    train, evaluation = transforms_of(dataset, processor(), "flip", seed=0)
    assert type(train) is TrainTransform
    assert train.augmentation == "flip"
    assert type(evaluation) is EvalTransform
    with pytest.raises(UleError, match="published is for waterbirds, celeba"):
        transforms_of(dataset, processor(), "published", seed=0)
    with pytest.raises(UleError, match="takes 224 x 192 pixels"):
        transforms_of(dataset_of([photograph(9, 9)], "celeba"), processor(224, 192), "published", seed=0)


# ---- images kept small -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """On the disk, because `datasets` keeps no cache of data in memory."""
    images = [photograph(64, 48), photograph(20, 90), photograph(16, 12)]
    DatasetDict(train=dataset_of(images, "x"), test=dataset_of(images[:1], "x")).save_to_disk(tmp_path / "data")
    return DatasetDict.load_from_disk(tmp_path / "data")


def test_images_are_shrunk_and_never_enlarged(data):
    small = cache_resized(data, 24)
    assert [image.size for image in small["train"]["image"]] == [(32, 24), (20, 90), (16, 12)]
    expected = photograph(64, 48).resize((32, 24), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(small["test"][0]["image"]), np.asarray(expected))
    for column in ("label", "group", "image_id"):
        assert small["train"][column][:] == data["train"][column][:]
    assert small["train"].info.dataset_name == data["train"].info.dataset_name
    assert small["train"].features == data["train"].features


def test_images_are_decoded_once(data, monkeypatch):
    small = cache_resized(data, 24)
    raw = small["train"].cast_column("image", Image(decode=False))[0]["image"]
    assert raw["bytes"][:2] == b"BM"  # uncompressed

    def decoded_again(*_):
        raise AssertionError

    monkeypatch.setattr("ule_hf.data.preprocessing.to_rgb", decoded_again)
    again = cache_resized(copy.deepcopy(data), 24)  # found in the cache
    assert again["train"][0]["image"].size == (32, 24)


def test_a_size_that_is_none(data):
    with pytest.raises(UleError, match="--cache_resized 0"):
        cache_resized(data, 0)
