"""Picture files of every kind that people have, with the pixels that they show, and files that show none."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import PIL.Image
from PIL import ImageOps

#: A file's suffix, its bytes, and what it shows: uint8 `[H, W, 3]`.
Picture = tuple[str, bytes, np.ndarray]

_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write: 16 bits a channel, and sizes that lie."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _rgb(kind: str, suffix: str, **options: object) -> Callable[[int], Picture]:
    def make(seed: int) -> Picture:
        content = encoded(PIL.Image.fromarray(noise(seed, 5, 7, 3)), kind, **options)
        return suffix, content, np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))

    return make


def _mode(mode: str, kind: str = "PNG", suffix: str = ".png") -> Callable[[int], Picture]:
    def make(seed: int) -> Picture:
        image = PIL.Image.fromarray(noise(seed, 5, 7, 4), "CMYK" if mode == "CMYK" else "RGBA")
        image = image if mode == "CMYK" else image.convert("RGB").convert(mode)
        content = encoded(image, kind)
        return suffix, content, np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB"))

    return make


def _transparent(seed: int) -> Picture:
    pixels = noise(seed, 5, 7, 4)
    return ".png", encoded(PIL.Image.fromarray(pixels, "RGBA"), "PNG"), pixels[..., :3]


def _transparent_palette(seed: int) -> Picture:
    image = PIL.Image.fromarray(noise(seed, 5, 7, 3)).quantize(8)
    shown = np.asarray(image.convert("RGB"))
    return ".png", encoded(image, "PNG", transparency=bytes(range(0, 240, 30))), shown


def _grey16(seed: int) -> Picture:
    high, low = noise(seed, 5, 7), noise(seed + 1, 5, 7)
    values = (high.astype(np.uint16) << 8) | low
    return ".png", encoded(PIL.Image.fromarray(values), "PNG"), np.stack([high] * 3, axis=-1)


def _rgb16(seed: int) -> Picture:
    high, low = noise(seed, 5, 7, 3), noise(seed + 1, 5, 7, 3)
    rows = np.stack([high, low], axis=-1).reshape(5, -1)
    return ".png", png(7, 5, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows)), high


def _animated(kind: str, suffix: str, **options: object) -> Callable[[int], Picture]:
    def make(seed: int) -> Picture:
        first, *others = (PIL.Image.fromarray(noise(seed + i, 5, 7)) for i in range(3))
        content = encoded(first, kind, save_all=True, append_images=others, duration=50, **options)
        return suffix, content, np.asarray(first.convert("RGB"))

    return make


def _turned(orientation: int, kind: str, suffix: str) -> Callable[[int], Picture]:
    def make(seed: int) -> Picture:
        image = PIL.Image.fromarray(noise(seed, 5, 7, 3))
        exif = image.getexif()
        exif[0x0112] = orientation
        content = encoded(image, kind, exif=exif)
        return suffix, content, _TURNS[orientation](np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB")))

    return make


def _sized(height: int, width: int) -> Callable[[int], Picture]:
    def make(seed: int) -> Picture:
        pixels = noise(seed, height, width, 3)
        return ".png", encoded(PIL.Image.fromarray(pixels), "PNG"), pixels

    return make


GOOD: dict[str, Callable[[int], Picture]] = {
    "png": _sized(5, 7),
    "one pixel": _sized(1, 1),
    "line": _sized(1, 300),
    "jpeg": _rgb("JPEG", ".jpg"),
    "progressive jpeg": _rgb("JPEG", ".JPEG", progressive=True),
    "bmp": _rgb("BMP", ".bmp"),
    "tiff": _rgb("TIFF", ".tif"),
    "webp": _rgb("WEBP", ".webp", lossless=True),
    "gif": _rgb("GIF", ".gif"),
    "jpeg named png": _rgb("JPEG", ".png"),
    "bits": _mode("1"),
    "grey": _mode("L"),
    "palette": _mode("P"),
    "grey and alpha": _mode("LA"),
    "cmyk jpeg": _mode("CMYK", "JPEG", ".jpg"),
    "cmyk tiff": _mode("CMYK", "TIFF", ".tiff"),
    "alpha": _transparent,
    "transparent palette": _transparent_palette,
    "16-bit grey": _grey16,
    "16-bit colour": _rgb16,
    "animated gif": _animated("GIF", ".gif"),
    "animated png": _animated("PNG", ".png"),
    "animated webp": _animated("WEBP", ".webp", lossless=True),
} | {
    f"turned {orientation} {kind}": _turned(orientation, kind, suffix)
    for orientation in _TURNS
    for kind, suffix in (("JPEG", ".jpg"), ("PNG", ".png"))
}


def _cut(kind: str) -> Callable[[int], bytes]:
    def make(seed: int) -> bytes:
        whole = encoded(PIL.Image.fromarray(noise(seed, 40, 40, 3)), kind)
        return whole[: len(whole) // 2]

    return make


def _number_pixels(dtype: type) -> Callable[[int], bytes]:
    return lambda seed: encoded(PIL.Image.fromarray(noise(seed, 5, 7).astype(dtype)), "TIFF")


def _wrong_checksum(seed: int) -> bytes:
    whole = bytearray(encoded(PIL.Image.fromarray(noise(seed, 40, 40, 3)), "PNG"))
    whole[len(whole) // 2] ^= 255
    return bytes(whole)


#: What no loader may take for a picture.
BAD: dict[str, Callable[[int], bytes]] = {
    "empty": lambda seed: b"",
    "a page": lambda seed: b"<html>404 not found</html>",
    "zeros": lambda seed: bytes(500),
    "half a png": _cut("PNG"),
    "half a jpeg": _cut("JPEG"),
    "half a gif": _cut("GIF"),
    "half a bmp": _cut("BMP"),
    "half a tiff": _cut("TIFF"),
    "half a webp": _cut("WEBP"),
    "wrong checksum": _wrong_checksum,
    "bomb": lambda seed: png(60_000, 60_000, 8, 2, bytes(1000)),
    "no area": lambda seed: png(0, 5, 8, 2, b""),
    "floats": _number_pixels(np.float32),
    "32-bit integers": _number_pixels(np.int32),
}


def assert_shown(image: PIL.Image.Image, expected: np.ndarray) -> None:
    """That `datasets` decodes to the pixels that the file shows."""
    from ule_hf.data.transforms import to_rgb

    shown = np.asarray(to_rgb(image))
    assert ImageOps.exif_transpose(image).size == image.size, "turned once more"
    assert shown.shape == expected.shape and (shown == expected).all()
