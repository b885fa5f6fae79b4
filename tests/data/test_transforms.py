from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from transformers import (
    AutoImageProcessor,
    EfficientNetImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)
from transformers.image_utils import load_image

from ule_hf.data.digits import build_digits
from ule_hf.data.transforms import EvalTransform, TrainTransform, collate, pixel_format, to_rgb
from ule_hf.errors import UleError

PRETRAINED_CFG = {
    "input_size": [3, 64, 48],
    "mean": [0.4, 0.45, 0.5],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    config = {"architecture": "test_resnet", "num_classes": 2, "pretrained_cfg": PRETRAINED_CFG}
    (folder / "config.json").write_text(json.dumps(config))
    return {
        "transformers": ViTImageProcessor(size={"height": 32, "width": 32}),
        "timm": AutoImageProcessor.from_pretrained(folder),
    }


@pytest.fixture(params=["transformers", "timm"])
def processor(request, processors):
    return processors[request.param]


@pytest.fixture(scope="module")
def digits():
    return build_digits()["train"].select(range(24))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Files of different sizes, modes and orientation, with labels."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(pixels)
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    frames = [PIL.Image.fromarray(np.full((40, 40), value, np.uint8)) for value in (10, 200)]
    picture.save(folder / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("L").resize((50, 50)).save(folder / "grey.png")
    picture.convert("RGBA").save(folder / "transparent.png")
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].convert("RGB").save(folder / "animated.png", save_all=True, append_images=[frames[1].convert("RGB")])
    paths = sorted(str(path) for path in folder.iterdir())
    features = Features(image=Image(), label=ClassLabel(num_classes=2), image_id=Value("string"))
    columns = {"image": paths, "label": [i % 2 for i in range(len(paths))], "image_id": paths}
    return Dataset.from_dict(columns, features=features)


def batch(dataset, transform, rows=None):
    return collate(dataset.with_transform(transform).__getitems__(rows or list(range(len(dataset)))))


def test_evaluation_is_what_the_pipeline_makes_of_the_files(processor, photos):
    pixel_values = batch(photos, EvalTransform(processor))["pixel_values"]
    for path, pixels in zip(photos["image_id"], pixel_values, strict=True):
        # load_image and one call of the processor are what pipeline("image-classification") does
        expected = processor(images=load_image(path), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)


def test_evaluation_equals_the_pipeline_itself(processors, photos):
    config = ViTConfig(image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.intermediate_size = 16
    model = ViTForImageClassification(config).eval()
    classify = pipeline("image-classification", model, image_processor=processors["transformers"], device="cpu")
    with torch.no_grad():
        scores = model(batch(photos, EvalTransform(processors["transformers"]))["pixel_values"]).logits.softmax(-1)
    for path, ours in zip(photos["image_id"], scores, strict=True):
        theirs = {row["label"]: row["score"] for row in classify(path)}
        for i, score in enumerate(ours.tolist()):
            assert theirs[config.id2label[i]] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    ("mode", "values"),
    [("L", np.uint8), ("1", bool), ("I;16", np.uint16)],
)
def test_to_rgb_keeps_the_brightness(mode, values):
    half = {"L": 128, "1": 1, "I;16": 128 * 256 + 7}[mode]
    image = PIL.Image.fromarray(np.full((4, 5), half, dtype=values))
    assert image.mode == mode
    expected = 255 if mode == "1" else 128
    assert (np.asarray(to_rgb(image)) == expected).all()
    assert to_rgb(image).mode == "RGB"


def test_16_bit_files_keep_their_brightness(tmp_path):
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    for name in ("ramp.png", "ramp.tiff"):
        PIL.Image.fromarray(ramp).save(tmp_path / name)
        rgb = to_rgb(PIL.Image.open(tmp_path / name))
        assert (np.asarray(rgb) == (ramp // 256)[..., None]).all()


def test_pixel_format_is_that_of_either_kind(processors):
    hf, timm = pixel_format(processors["transformers"]), pixel_format(processors["timm"])
    assert (hf.height, hf.width, hf.interpolation) == (32, 32, InterpolationMode.BILINEAR)
    assert (timm.height, timm.width, timm.interpolation) == (64, 48, InterpolationMode.BICUBIC)
    assert hf.mean == pytest.approx(list(processors["transformers"].image_mean), abs=1e-6)
    assert hf.std == pytest.approx(list(processors["transformers"].image_std), abs=1e-6)
    assert timm.mean == pytest.approx(PRETRAINED_CFG["mean"], abs=1e-6)
    assert timm.std == pytest.approx(PRETRAINED_CFG["std"], abs=1e-6)


def test_pixel_format_sees_what_attributes_do_not_say():
    # EfficientNet's processor divides by the standard deviation twice
    assert pixel_format(EfficientNetImageProcessor()).std == pytest.approx([0.25] * 3)
    plain = ViTImageProcessor(size={"height": 20, "width": 30}, do_normalize=False)
    assert pixel_format(plain).mean == pytest.approx([0.0] * 3)
    assert pixel_format(plain).std == pytest.approx([1.0] * 3)


def test_none_is_evaluation(processor, digits):
    ours, evaluation = batch(digits, TrainTransform(processor, "none")), batch(digits, EvalTransform(processor))
    assert ours.keys() == evaluation.keys()
    assert all(torch.equal(ours[key], evaluation[key]) for key in ("pixel_values", "labels", "group"))
    assert ours["image_id"] == evaluation["image_id"]


def test_flip_mirrors_about_half_of_evaluation(processor, digits):
    plain = batch(digits, EvalTransform(processor))["pixel_values"]
    flipped = batch(digits, TrainTransform(processor, "flip"))["pixel_values"]
    mirrored = [torch.equal(f, p.flip(-1)) for f, p in zip(flipped, plain, strict=True)]
    assert 4 < sum(mirrored) < 20
    assert all(m or torch.equal(f, p) for m, f, p in zip(mirrored, flipped, plain, strict=True))


def test_crop_has_the_processors_size_and_normalisation(processor):
    white = PIL.Image.new("RGB", (100, 80), "white")
    rows = {"image": [white], "label": [0], "image_id": ["white"]}
    cropped = TrainTransform(processor, "crop")(rows)["pixel_values"]
    torch.testing.assert_close(cropped, EvalTransform(processor)(rows)["pixel_values"], rtol=0, atol=1e-4)


def test_crop_keeps_at_least_seven_tenths(processors):
    # in a horizontal ramp the width of a crop is the range of its brightness
    ramp = PIL.Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    rows = {"image": [ramp] * 200, "label": [0] * 200, "image_id": [str(i) for i in range(200)]}
    pixels = TrainTransform(processors["transformers"], "crop")(rows)["pixel_values"][:, 0]
    width = (pixels.amax((1, 2)) - pixels.amin((1, 2))) / 2  # mean and std are 0.5
    assert width.min() > (0.7 * 3 / 4) ** 0.5 - 0.05  # smallest area at the narrowest aspect, less half-pixels
    assert width.min() < 0.85 and width.max() > 0.95
    assert 0.3 < (pixels[:, 0, 0] > pixels[:, 0, -1]).float().mean() < 0.7  # mirrored


@pytest.mark.parametrize("augmentation", ["flip", "crop"])
def test_augmentation_is_a_function_of_seed_epoch_and_image(processor, digits, augmentation):
    def pixels(seed=0, epoch=0, rows=None):
        transform = TrainTransform(processor, augmentation, seed)
        transform.set_epoch(epoch)
        return batch(digits, transform, rows)["pixel_values"]

    once = pixels(epoch=2)
    torch.rand(5)
    assert torch.equal(pixels(epoch=2), once)
    assert torch.equal(pixels(epoch=2, rows=[7, 3]), once[[7, 3]])  # neither order nor company matters
    assert not torch.equal(pixels(epoch=3), once)
    assert not torch.equal(pixels(epoch=2, seed=1), once)


def test_two_rows_with_one_picture_are_augmented_apart(processors):
    picture = build_digits()["train"][0]["image"]
    rows = {"image": [picture] * 8, "label": [0] * 8, "image_id": list("abcdefgh")}
    pixels = TrainTransform(processors["transformers"], "crop")(rows)["pixel_values"]
    assert len({p.numpy().tobytes() for p in pixels}) > 4


@pytest.mark.parametrize("augmentation", ["none", "flip", "crop"])
def test_the_global_generator_is_left_alone(processor, digits, augmentation):
    transform = TrainTransform(processor, augmentation)
    before = torch.get_rng_state()
    batch(digits, transform)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_restored_after_an_error(processors, digits):
    transform = TrainTransform(processors["transformers"], "crop")
    transform._augment = lambda image: 1 / 0
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        batch(digits, transform)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_persistent_workers_follow_the_epoch(processors, digits, context):
    transform = TrainTransform(processors["transformers"], "crop", seed=5)
    dataset = digits.with_transform(transform)
    loader = DataLoader(
        dataset, 5, num_workers=2, persistent_workers=True, collate_fn=collate, multiprocessing_context=context
    )
    for epoch in (0, 1, 4):
        transform.set_epoch(epoch)
        alone = TrainTransform(processors["transformers"], "crop", seed=5)
        alone.set_epoch(epoch)
        workers = torch.cat([rows["pixel_values"] for rows in loader])
        assert torch.equal(workers, batch(digits, alone)["pixel_values"])


def test_pickling_keeps_everything(processor, digits):
    transform = TrainTransform(processor, "crop", seed=3)
    transform.set_epoch(2)
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(batch(digits, copy)["pixel_values"], batch(digits, transform)["pixel_values"])
    assert copy._epoch.is_shared()


@pytest.mark.parametrize("augmentation", ["none", "flip", "crop"])
def test_datasets_can_hash_the_transform(processor, digits, augmentation):
    # what cannot be hashed gets a random fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = (digits.with_transform(TrainTransform(processor, augmentation)) for _ in range(2))
        evaluation = digits.with_transform(EvalTransform(processor))
    assert one._fingerprint == two._fingerprint != evaluation._fingerprint
    # the trainer reaches the transform through the dataset
    assert one.format["format_kwargs"]["transform"].augmentation == augmentation


def test_collate_keeps_what_the_model_needs(processors, digits):
    transformed = batch(digits, EvalTransform(processors["transformers"]), [3, 1])
    ids = transformed.pop("image_id")
    assert ids == [digits[3]["image_id"], digits[1]["image_id"]]
    assert {key: (tuple(value.shape), value.dtype) for key, value in transformed.items()} == {
        "pixel_values": ((2, 3, 32, 32), torch.float32),
        "labels": ((2,), torch.int64),
        "group": ((2,), torch.int64),
    }
    assert transformed["labels"].tolist() == [digits[3]["label"], digits[1]["label"]]
    assert transformed["group"].tolist() == [digits[3]["group"], digits[1]["group"]]
    rows = [{"pixel_values": torch.zeros(3, 2, 2), "labels": 1, "image_id": "a"}] * 2
    assert collate(rows).keys() == {"pixel_values", "labels", "image_id"}
    assert collate(rows)["image_id"] == ["a", "a"]


def test_unknown_augmentation(processors):
    with pytest.raises(UleError, match="'mixup' is unknown; choose one of none, flip, crop"):
        TrainTransform(processors["transformers"], "mixup")
