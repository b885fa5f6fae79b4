"""From the columns of a dataset to the batches of a model: picklable transforms for `Dataset.with_transform`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import InterpolationMode, v2
from transformers import BaseImageProcessor
from transformers.image_utils import pil_torch_interpolation_mapping

from ule_hf.errors import UleError
from ule_hf.seeds import named_seed

AUGMENTATIONS = ("none", "flip", "crop")


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any picture as RGB with 8 bits: grey, palette, CMYK, transparent (the alpha channel is dropped), 16 bits.

    16-bit grey is scaled by 1/256, because Pillow's own conversion, which `pipeline` uses too, clips all above 255 to
    white. EXIF orientation is not looked at here: `datasets.Image` has applied it when it decoded the file.
    """
    if image.mode.startswith("I;16"):
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


class PixelFormat(NamedTuple):
    """What an image processor makes of a picture: size in pixels, normalisation of values in [0, 1], resampling."""

    height: int
    width: int
    mean: list[float]
    std: list[float]
    interpolation: InterpolationMode


def pixel_format(processor: BaseImageProcessor) -> PixelFormat:
    """The format of ``processor``, measured: transformers and timm write it down in a dozen different ways.

    A black and a white picture go through the processor; the size is theirs, and as normalisation is
    ``(x - mean) / std``, black at ``-mean / std`` and white at ``(1 - mean) / std`` give mean and std.
    """
    probes = [PIL.Image.new("RGB", (256, 256), colour) for colour in ("black", "white")]
    pixels = processor(probes, return_tensors="pt")["pixel_values"].double()
    height, width = pixels.shape[-2:]
    black, white = pixels[..., height // 2, width // 2]
    std = 1 / (white - black)
    if hasattr(processor, "data_config"):  # timm's
        interpolation = str_to_interp_mode(processor.data_config["interpolation"])
    else:
        # where a transformers processor names none, it resizes bilinearly
        interpolation = pil_torch_interpolation_mapping.get(processor.resample, InterpolationMode.BILINEAR)
    return PixelFormat(height, width, (-black * std).tolist(), std.tolist(), interpolation)


class EvalTransform:
    """Batches for evaluation, made by the image processor itself: the pixels are those that `pipeline` will see.

    Args:
        processor: of transformers, or transformers' wrapper of timm.
    """

    def __init__(self, processor: BaseImageProcessor):
        self.processor = processor

    def __call__(self, batch: dict[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Columns ``image``, ``label`` and, where there are any, ``group`` to tensors.

        Returns:
            ``pixel_values`` float32 `[B, 3, H, W]`, ``labels`` int64 `[B]`, ``group`` int64 `[B]`.
        """
        return _with_targets(self._process(batch), batch)

    def _process(self, batch: dict[str, Sequence[Any]]) -> torch.Tensor:
        images = [to_rgb(image) for image in batch["image"]]
        return self.processor(images, return_tensors="pt")["pixel_values"]


class TrainTransform(EvalTransform):
    """Batches for training. Augmentation is a pure function of (seed, epoch, image_id).

    So it depends neither on the number of workers nor on the order of the images, a resumed run sees what an
    uninterrupted one sees, and no other random stream is shifted. Call :meth:`set_epoch` at the start of each epoch.

    Args:
        processor: as for evaluation.
        augmentation: ``none``; ``flip``, evaluation's picture mirrored with probability 1/2; or ``crop``, which cuts
            out 0.7 to 1 of the area at an aspect of 3/4 to 4/3, resizes it and mirrors it as ``flip`` does.
        seed: of the run.

    Raises:
        UleError: another augmentation.
    """

    def __init__(self, processor: BaseImageProcessor, augmentation: str = "none", seed: int = 0):
        super().__init__(processor)
        if augmentation not in AUGMENTATIONS:
            raise UleError(f"augmentation '{augmentation}' is unknown; choose one of {', '.join(AUGMENTATIONS)}")
        self.augmentation = augmentation
        self.seed = seed
        self._augment = _crop_and_flip(pixel_format(processor)) if augmentation == "crop" else v2.RandomHorizontalFlip()
        # shared memory: workers that outlive an epoch see what the main process sets
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Augmentation of all images from now on is that of ``epoch``, in running data loader workers too."""
        self._epoch.fill_(epoch)

    def __call__(self, batch: dict[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """As :meth:`EvalTransform.__call__`, augmented; reads the column ``image_id`` as well."""
        if self.augmentation == "none":
            return super().__call__(batch)
        crop = self.augmentation == "crop"
        images = [to_rgb(image) for image in batch["image"]] if crop else self._process(batch)
        generator = torch.default_generator  # what torchvision draws from; torch.manual_seed would reseed CUDA's too
        state = generator.get_state()
        try:
            augmented = []
            for image, image_id in zip(images, batch["image_id"], strict=True):
                generator.manual_seed(named_seed(self.seed, "augmentation", int(self._epoch), image_id))
                augmented.append(self._augment(image))
        finally:
            generator.set_state(state)
        return _with_targets(torch.stack(augmented), batch)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # plain pickle copies the tensor out of shared memory


def collate(features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of a transformed dataset to one batch: ``pixel_values``, ``labels`` and, where present, ``group`` and
    ``image_id`` (a list, to say which images a batch had)."""
    keys = [key for key in ("pixel_values", "labels", "group") if key in features[0]]
    batch = {key: torch.stack([torch.as_tensor(row[key]) for row in features]) for key in keys}
    return batch | {"image_id": [row["image_id"] for row in features]} if "image_id" in features[0] else batch


def _with_targets(pixel_values: torch.Tensor, batch: dict[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
    columns = {"labels": "label", "group": "group"}
    targets = {key: torch.tensor(batch[column]) for key, column in columns.items() if column in batch}
    ids = {"image_id": list(batch["image_id"])} if "image_id" in batch else {}
    return {"pixel_values": pixel_values, **targets, **ids}


def _crop_and_flip(target: PixelFormat) -> Callable[[PIL.Image.Image], torch.Tensor]:
    size = (target.height, target.width)
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3), interpolation=target.interpolation),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(target.mean, target.std),
        ]
    )
