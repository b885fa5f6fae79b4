"""One picture of UrbanCars: a scene, an object of the city or country, a car."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NamedTuple

import PIL.Image

from ule_hf.errors import UleError

#: Share of the picture's width that the longer side of the cut-out has, and its centre (row, column): the authors'
#: generator takes (0.5, 0.875) as row and column, so the object is to the right of the car.
_CAR = (0.5, (0.5, 0.5))
_CO_OCCUR_OBJ = (0.25, (0.5, 0.875))


class Composition(NamedTuple):
    """RGB, and masks of mode L with 0 or 255; the object's mask is whole where the car stands before it."""

    image: PIL.Image.Image
    mask: PIL.Image.Image
    co_occur_obj_mask: PIL.Image.Image


def compose(
    background: PIL.Image.Image,
    co_occur_obj: PIL.Image.Image,
    co_occur_obj_mask: PIL.Image.Image,
    car: PIL.Image.Image,
    car_mask: PIL.Image.Image,
    size: int,
) -> Composition:
    """Cut-outs of the object and, over it, of the car on the background.

    Args:
        background: of ``size`` × ``size`` pixels, or resized to that.
        co_occur_obj_mask, car_mask: mode L, above 127 inside; not empty; a size other than its picture's is resized.
    """
    canvas = background.convert("RGB")
    if canvas.size != (size, size):
        canvas = canvas.resize((size, size), PIL.Image.Resampling.BILINEAR)
    placed = []
    for picture, mask, (share, centre) in ((co_occur_obj, co_occur_obj_mask, _CO_OCCUR_OBJ), (car, car_mask, _CAR)):
        picture, mask = _cut_out(picture, mask, share * size)
        corner = tuple(
            max(0, int(position * size) - side // 2) for position, side in zip(centre[::-1], mask.size, strict=True)
        )
        canvas.paste(picture, corner, mask)
        placed.append(PIL.Image.new("L", (size, size)))
        placed[-1].paste(mask, corner)
    return Composition(canvas, mask=placed[1], co_occur_obj_mask=placed[0])


def save_whole(image: PIL.Image.Image, path: Path) -> None:
    """Saves ``image`` so that ``path`` is there when it is complete, and not before.

    Raises:
        UleError: the disk is full.
    """
    part = path.with_name(path.name + ".part")
    try:
        # Pillow's own quality is the one that the published images have
        image.save(part, format="JPEG" if path.suffix == ".jpg" else "PNG")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise UleError(
                f"the disk is full: {path} could not be written; free some space and run it again: "
                "what is complete is kept"
            ) from error
        raise


def open_rgb(path: Path) -> PIL.Image.Image:
    """The picture as it is stored: masks are of pixels before any rotation that EXIF asks for.

    Raises:
        UleError: it cannot be decoded.
    """
    return _open(path, "RGB")


def open_mask(path: Path) -> PIL.Image.Image:
    """As :func:`open_rgb`, in mode L.

    Raises:
        UleError: it cannot be decoded, or has no pixel above 127.
    """
    mask = _open(path, "L")
    if mask.getextrema()[1] <= 127:
        raise UleError(f"{path} is an empty mask; remove it, and another car takes the place of this one")
    return mask


def _open(path: Path, mode: str) -> PIL.Image.Image:
    try:
        with PIL.Image.open(path) as image:
            return image.convert(mode)
    except Exception as error:  # Pillow's plugins raise what they like
        raise UleError(f"{path} cannot be decoded ({type(error).__name__}: {error}); get it anew") from error


def _cut_out(
    picture: PIL.Image.Image, mask: PIL.Image.Image, longer_side: float
) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Picture and mask inside the mask's bounding box, scaled to ``longer_side`` pixels."""
    if mask.size != picture.size:
        mask = mask.resize(picture.size, PIL.Image.Resampling.NEAREST)
    mask = mask.point([0] * 128 + [255] * 128)
    box = mask.getbbox()
    picture, mask = picture.crop(box), mask.crop(box)
    scale = longer_side / max(mask.size)
    size = tuple(max(1, round(scale * side)) for side in mask.size)
    return picture.resize(size, PIL.Image.Resampling.BILINEAR), mask.resize(size, PIL.Image.Resampling.NEAREST)
