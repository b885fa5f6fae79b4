"""Where the object lies, in data that know it: masks beside the images, and pictures that this package composes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from ule_hf.arguments import DataArguments
from ule_hf.data.transforms import EvalTransform, pixel_format
from ule_hf.errors import UleError

#: Rows and columns of digit and patch, see :func:`ule_hf.data.digits.build_digits`; the patch covers a corner.
DIGIT, PATCH = slice(3, 29), slice(0, 6)


def object_masks(
    data_args: DataArguments, images: Sequence[PIL.Image.Image], image_ids: Sequence[str]
) -> list[PIL.Image.Image] | None:
    """For each image a grey picture of its size, white where the object lies; None for data that do not say.

    ``digits`` with a patch: the digit's frame without the patch; with halves, ``digit_pairs`` with halves, and
    ``dominoes``: the lower half; ``digit_pairs`` with two shortcuts: the middle third, with moving digits: None. Else a
    file, not 0 on the object: ``masks/<image>.png`` in the data folder, or ``<image>_mask.png`` beside the image.

    Raises:
        UleError: some images have a mask and others none, or a mask is of another size than its image.
    """
    if data_args.dataset == "digit_pairs" and data_args.shortcut == "moving":
        return None
    if data_args.dataset in ("digits", "digit_pairs", "dominoes"):
        whole = [np.zeros(image.size[::-1], dtype=np.uint8) for image in images]
        for mask in whole:
            if data_args.dataset == "digits" and data_args.shortcut == "patch":
                mask[DIGIT, DIGIT] = 255
                mask[PATCH, PATCH] = 0
            elif data_args.dataset == "digit_pairs" and data_args.shortcut == "two":
                mask[len(mask) // 3 : 2 * len(mask) // 3] = 255
            else:
                mask[len(mask) // 2 :] = 255
        return [PIL.Image.fromarray(mask) for mask in whole]
    root = Path(data_args.data_dir or "")
    files = [_mask_file(root, image_id) for image_id in image_ids]
    if not any(files):
        return None
    if None in files:
        raise UleError(f"{root}: {image_ids[files.index(None)]} has no mask, and other images have one; add it")
    return [_read(file, image.size) for file, image in zip(files, images, strict=True)]


def _mask_file(root: Path, image_id: str) -> Path | None:
    name = PurePosixPath(image_id)
    candidates = (root / "masks" / name.with_suffix(".png"), root / name.with_name(f"{name.stem}_mask.png"))
    return next((file for file in candidates if file.is_file()), None)


def _read(file: Path, size: tuple[int, int]) -> PIL.Image.Image:
    try:
        with PIL.Image.open(file) as picture:
            mask = picture.convert("L").point(lambda value: 255 if value else 0)
    except Exception as error:  # Pillow's plugins raise what they like
        raise UleError(f"{file}: is no mask that can be read ({str(error).splitlines()[0]})") from error
    if mask.size != size:
        raise UleError(f"{file}: is of {mask.size} pixels, its image of {size}; give masks of the images' size")
    return mask


def as_seen(masks: Sequence[PIL.Image.Image], transform: EvalTransform) -> Tensor:
    """The masks resized and cropped as the model's images are: ``[B, H, W]`` in [0, 1]."""
    pixels = transform({"image": list(masks)})["pixel_values"]
    target = pixel_format(transform.processor)
    return (pixels[:, 0] * target.std[0] + target.mean[0]).clamp(0, 1).to(torch.float32)
