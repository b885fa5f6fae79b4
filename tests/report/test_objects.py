"""Where the object lies: areas by hand, files beside images, and masks that follow their image's way into the model."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch

from ule_hf.arguments import DataArguments
from ule_hf.backbones import load_backbone
from ule_hf.data import load
from ule_hf.data.transforms import EvalTransform
from ule_hf.errors import UleError
from ule_hf.report.explain import visible
from ule_hf.report.objects import as_seen, object_masks
from ule_hf.report.saliency import area


def grey(mask: PIL.Image.Image) -> np.ndarray:
    return np.asarray(mask)


def test_the_digit_under_a_patch_and_in_the_lower_half():
    test = load("digits", kind="patch")["test"]
    same_digit = test.select([0, len(test) // 2])["image"]  # each with its own patch
    mask, _ = object_masks(DataArguments(shortcut="patch"), same_digit, ["x", "y"])
    (lower,) = object_masks(DataArguments(shortcut="half"), same_digit[:1], ["x"])
    assert [(grey(m) == 255).sum() for m in (mask, lower)] == [26 * 26 - 9, 16 * 32] and not grey(lower)[:16].any()
    one, other = (np.asarray(image) for image in same_digit)  # what tells the answer is not on the object
    differing = (one != other).any(axis=2)
    assert differing.sum() == 36 and not (differing & (grey(mask) > 0)).any()


def test_the_lower_half_of_dominoes():
    (mask,) = object_masks(DataArguments(dataset="dominoes"), [PIL.Image.new("RGB", (32, 64))], ["x"])
    assert grey(mask)[:32].max() == 0 and grey(mask)[32:].min() == 255


def test_the_label_s_digit_in_digit_pairs():
    def rows(shortcut, height):
        data_args = DataArguments(dataset="digit_pairs", shortcut=shortcut)
        masks = object_masks(data_args, [PIL.Image.new("RGB", (28, height))], ["x"])
        return masks and np.flatnonzero(grey(masks[0]).min(axis=1) == 255).tolist()

    assert rows("half", 56) == rows("two", 84) == list(range(28, 56))
    assert rows("moving", 56) is None


@pytest.mark.parametrize("name", ["masks/birds/a.png", "birds/a_mask.png"])
def test_masks_in_files(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    PIL.Image.fromarray(np.eye(4, dtype=bool)).save(file)
    data_args = DataArguments(dataset="folder", data_dir=str(tmp_path))
    (mask,) = object_masks(data_args, [PIL.Image.new("RGB", (4, 4))], ["birds/a.jpg"])
    assert (grey(mask) == np.eye(4) * 255).all()


def test_data_without_masks(tmp_path):
    data_args = DataArguments(dataset="folder", data_dir=str(tmp_path))
    assert object_masks(data_args, [PIL.Image.new("RGB", (4, 4))], ["a.jpg"]) is None


def test_bad_masks(tmp_path):
    data_args = DataArguments(dataset="folder", data_dir=str(tmp_path))
    images, names = [PIL.Image.new("RGB", (4, 4))] * 2, ["a.jpg", "b.jpg"]
    PIL.Image.new("1", (4, 4)).save(tmp_path / "a_mask.png")
    with pytest.raises(UleError, match=r"b.jpg has no mask"):
        object_masks(data_args, images, names)
    PIL.Image.new("1", (5, 4)).save(tmp_path / "b_mask.png")
    with pytest.raises(UleError, match=r"b_mask.png: is of \(5, 4\) pixels"):
        object_masks(data_args, images, names)
    (tmp_path / "b_mask.png").write_bytes(b"no picture")
    with pytest.raises(UleError, match=r"b_mask.png: is no mask"):
        object_masks(data_args, images, names)


def test_a_mask_is_resized_and_cropped_as_its_image():
    """An image that is its own mask: what the model sees of it is what is left of the mask."""
    _, processor = load_backbone("test_resnet", label_names=["a", "b"])  # with its own cropping
    transform = EvalTransform(processor)
    white = np.zeros((90, 140), dtype=np.uint8)
    white[20:60, 40:120] = 255
    mask = PIL.Image.fromarray(white)
    seen = as_seen([mask], transform)
    pixels = transform({"image": [mask.convert("RGB")]})["pixel_values"]
    torch.testing.assert_close(seen, torch.tensor(visible(pixels, transform)).mean(dim=-1), atol=1e-5, rtol=0)
    assert seen.min() == 0 and seen.max() == 1 and 0.2 < area(seen)[0] < 0.8
