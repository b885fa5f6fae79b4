"""Small copies of the benchmarks in their official layouts, with stand-in pictures, for tests to break."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import PIL.Image

#: Images of each group in each split of the small copies.
SIZES = {"train": (4, 2, 1, 3), "validation": (2, 2, 1, 1), "test": (2, 3, 1, 2)}
ROWS = [
    (split, group // 2, group % 2)
    for split, sizes in enumerate(SIZES.values())
    for group, size in enumerate(sizes)
    for _ in range(size)
]


def jpeg(seed, size=(9, 7)):
    """Another picture for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def published_of(module_groups):
    """What the module's published counts would be if the small copy were the benchmark."""
    return {split: dict(zip(module_groups, sizes, strict=True)) for split, sizes in SIZES.items()}


def write_waterbirds(root, rows=ROWS, masks=False):
    """`metadata.csv` and a picture for each row."""
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for i, (split, label, place) in enumerate(rows):
        file = root / f"{i % 3:03d}.Species" / f"bird_{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(i))
        if masks:
            mask = root / "masks" / f"{i % 3:03d}.Species" / f"bird_{i}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("1", (9, 7), i % 2).save(mask)
        lines.append(f"{i + 1},{file.relative_to(root)},{label},{split},{place},/o/ocean/{i:08d}.jpg")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def write_celeba(root, rows=ROWS, csv=False, negative=-1):
    """The two text files or tables, and a picture for each row; `Young` is always 1."""
    images = root / "img_align_celeba"
    images.mkdir(parents=True)
    names = ["Blond_Hair", "Male", "Young"]
    attributes, partition = [], []
    for i, (split, label, male) in enumerate(rows):
        file = f"{i + 1:06d}.jpg"
        (images / file).write_bytes(jpeg(i, (178, 218)))
        attributes.append([file, *(str(1 if value else negative) for value in (label, male, True))])
        partition.append([file, str(split)])
    if csv:
        attributes.insert(0, ["image_id", *names])
        partition.insert(0, ["image_id", "partition"])
    separator, suffix = (",", "csv") if csv else (" ", "txt")
    lines = [separator.join(row) for row in attributes]
    if not csv:
        lines = [str(len(rows)), " ".join(names) + " ", *lines]
    (root / f"list_attr_celeba.{suffix}").write_text("\n".join(lines) + "\n")
    (root / f"list_eval_partition.{suffix}").write_text("\n".join(separator.join(row) for row in partition) + "\n")
    return root


def tar(root, archive, inside="archive"):
    with tarfile.open(archive, "w:gz") as file:
        file.add(root, arcname=inside)
    return archive
