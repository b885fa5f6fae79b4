"""Each benchmark's published preprocessing, and images that are decoded once and kept small."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from torchvision.transforms import v2
from transformers import BaseImageProcessor

from ule_hf.data.transforms import EvalTransform, TrainTransform, pixel_format, to_rgb
from ule_hf.errors import UleError


class CenterSquare(nn.Module):
    """The largest square in the middle of a picture: what `CenterCrop(178)` cuts out of CelebA's 178 x 218."""

    def forward(self, image: PIL.Image.Image) -> PIL.Image.Image:
        return v2.functional.center_crop(image, [min(image.size)])


def _waterbirds_eval(size: int) -> list[nn.Module]:
    enlarged = round(size * 256 / 224)
    return [v2.Resize((enlarged, enlarged)), v2.CenterCrop(size)]


#: Steps of evaluation and of training by benchmark, up to normalisation, for a square of so many pixels. Bilinear.
#: Waterbirds and CelebA: kohpangwei/group_DRO. Spawrious: the authors' copy of DomainBed. UrbanCars:
#: facebookresearch/Whac-A-Mole, which takes the pictures at their 256 pixels.
PUBLISHED: dict[str, tuple[Callable[[int], list[nn.Module]], Callable[[int], list[nn.Module]]]] = {
    "waterbirds": (
        _waterbirds_eval,
        lambda size: [
            v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.75, 1.3333333333333333)),
            v2.RandomHorizontalFlip(),
        ],
    ),
    "celeba": (
        lambda size: [CenterSquare(), v2.Resize((size, size))],
        lambda size: [
            v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(1.0, 1.3333333333333333)),
            v2.RandomHorizontalFlip(),
        ],
    ),
    "spawrious": (
        lambda size: [v2.Resize((size, size))],
        lambda size: [
            v2.Resize((size, size)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v2.RandomGrayscale(),
        ],
    ),
    "urbancars": (
        lambda size: [v2.Resize((size, size))],
        lambda size: [v2.Resize((size, size)), v2.RandomHorizontalFlip()],
    ),
}


class PublishedEvalTransform(EvalTransform):
    """As :class:`EvalTransform`, but cut and resized as published for the benchmark ``name``.

    Size and normalisation stay the model's. `pipeline`, which knows the model only, will not see these pixels.
    """

    def __init__(self, processor: BaseImageProcessor, name: str):
        super().__init__(processor)
        self._steps = _pixels(processor, name, part=0)

    def _process(self, batch: dict[str, Sequence[Any]]) -> torch.Tensor:
        return torch.stack([self._steps(to_rgb(image)) for image in batch["image"]])


class PublishedTrainTransform(TrainTransform):
    """As :class:`TrainTransform`, augmented as the benchmark ``name`` was."""

    def __init__(self, processor: BaseImageProcessor, name: str, seed: int = 0):
        super().__init__(processor, "crop", seed)  # the kind that augments the picture itself
        self._augment = _pixels(processor, name, part=1)


def transforms_of(
    train: Dataset, processor: BaseImageProcessor, augmentation: str, seed: int
) -> tuple[TrainTransform, EvalTransform]:
    """Transforms of training and evaluation.

    Args:
        augmentation: one of `transforms.AUGMENTATIONS`, or ``published``: evaluation then is the benchmark's too.

    Raises:
        UleError: another augmentation, ``published`` for data that are no benchmark, or a model that takes no squares.
    """
    if augmentation != "published":
        return TrainTransform(processor, augmentation, seed), EvalTransform(processor)
    name = train.info.dataset_name
    if name not in PUBLISHED:
        raise UleError(f"--augmentation published is for {', '.join(PUBLISHED)}; choose none, flip or crop")
    return PublishedTrainTransform(processor, name, seed), PublishedEvalTransform(processor, name)


def _pixels(processor: BaseImageProcessor, name: str, part: int) -> v2.Compose:
    target = pixel_format(processor)
    if target.height != target.width:
        raise UleError(
            f"the model takes {target.height} x {target.width} pixels, published preprocessing makes squares"
        )
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(target.mean, target.std)]
    return v2.Compose([*PUBLISHED[name][part](target.height), *end])


def cache_resized(data: DatasetDict, pixels: int) -> DatasetDict:
    """The images decoded once and kept in the cache of `datasets`, uncompressed, their shorter side ``pixels`` or less.

    Aspect is kept and nothing is enlarged, so that every later step finds what it expects. An image takes 3 bytes a
    pixel on the disk: Waterbirds at 256 pixels some 3 GB. A second run finds them there.

    Raises:
        UleError: ``pixels`` below 1, or a full disk.
    """
    if pixels < 1:
        raise UleError(f"--cache_resized {pixels}: give the shorter side in pixels, such as 256")
    try:
        return DatasetDict({split: dataset.map(_Shrink(pixels)) for split, dataset in data.items()})
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UleError("--cache_resized: the disk is full; free some space, or leave the option out") from error
        raise


class _Shrink:
    """A class and no closure: `datasets` names its cache file after what pickle makes of it."""

    def __init__(self, pixels: int):
        self.pixels = pixels

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        image = to_rgb(row["image"])
        if min(image.size) > self.pixels:
            image = v2.functional.resize(image, [self.pixels], antialias=True)
        buffer = io.BytesIO()
        image.save(buffer, "BMP")  # of all formats that `datasets.Image` reads, the one that costs least to decode
        return {"image": {"bytes": buffer.getvalue(), "path": None}}
