"""Is this copy the published benchmark? Counts by split and group, names, pictures.

A benchmark's module holds its published counts as plain data; this module only compares:

* :func:`verify` at every load: counts, no `image_id` twice, and the size of one picture a split.
* :func:`verify_images` where a copy is checked or published: every picture is decoded.

What differs from the published benchmark (a subset, another composition) is accepted only under a name that the user
gives, the ``variant``, and carries that name from then on: see :func:`label_of`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Image

from ule_hf.data.image_table import first_few
from ule_hf.errors import UleError

logger = logging.getLogger(__name__)

#: Images by split, then by the name of the group (see :func:`ule_hf.data.groups.group_names`); of published counts,
#: an integer for a split of which only the total is known.
Counts = Mapping[str, Mapping[str, int] | int]


def count_groups(data: DatasetDict) -> dict[str, dict[str, int]]:
    """Images of each group in each split, from the ClassLabel column ``group``; empty groups count 0."""
    counts = {}
    for split, dataset in data.items():
        names = dataset.features["group"].names
        sizes = np.bincount(np.asarray(dataset.with_format(None)["group"][:], dtype=np.int64), minlength=len(names))
        counts[split] = dict(zip(names, sizes.tolist(), strict=True))
    return counts


def verify(
    name: str,
    data: DatasetDict,
    published: Counts,
    variant: str | None = None,
    bad_images_skipped: bool = False,
    image_size: tuple[int, int] | None = None,
) -> DatasetDict:
    """The same data, labelled as the benchmark ``name`` or as its variant; see :func:`label_of`.

    Args:
        name: of the benchmark with its configuration, such as ``waterbirds`` or ``spawrious o2o_easy``.
        data: splits with the columns ``group`` and ``image_id``.
        published: a group that is left out has no images.
        variant: the user's name for data that are not the published ones; their counts may be any.
        bad_images_skipped: where images are missing, the variant is called "without n unreadable images" by default.
        image_size: width and height that the first image of each split must have, unless there is a ``variant``.

    Raises:
        UleError: other counts and no ``variant`` (with the table of both), an ``image_id`` that occurs twice, or images
            of another size.
    """
    found = count_groups(data)
    if bad_images_skipped and variant is None:
        missing = _total(published) - _total(found)
        variant = f"without {missing} unreadable images" if missing > 0 else None
    verify_counts(name, found, published, variant)
    _refuse_repeated_ids(name, data)
    if image_size is not None and variant is None:
        for split, dataset in data.items():
            verify_images(name, DatasetDict({split: dataset.select(range(min(1, len(dataset))))}), image_size)
    label = f"{name}, variant {variant} (not the published benchmark)" if variant else name
    labelled = DatasetDict(data)
    for split, dataset in data.items():
        labelled[split] = dataset.with_format(**dataset.format)  # a copy: the caller's keeps its own label
        labelled[split].info.dataset_name = name.split()[0]
        labelled[split].info.description = label
    return labelled


def verify_counts(name: str, found: Counts, published: Counts, variant: str | None = None) -> None:
    """As :func:`verify`, from counts alone.

    Raises:
        UleError: counts that are not the published ones, and no ``variant``.
    """
    if variant is not None:
        if not variant.strip():
            raise UleError("--variant is empty; give the name under which results are to be reported")
        return
    if any(expected != got for _, _, expected, got in _rows(found, published)):
        raise UleError(
            f"this is not the published {name}; get another copy, or name it with --variant NAME to use it as it is\n"
            + format_counts(found, published)
        )


def format_counts(found: Counts, published: Counts) -> str:
    """A table of both, a line for each group of each split; lines that differ are marked."""
    rows = _rows(found, published)
    width = max(len(group) for group in ("group", *(row[1] for row in rows)))
    lines = [f"{'split':<10}  {'group':<{width}}  {'published':>9}  {'found':>9}"]
    for split, group, expected, got in rows:
        mark = "" if expected == got else "  differs"
        lines.append(f"{split:<10}  {group:<{width}}  {expected:>9}  {got:>9}{mark}")
    return "\n".join(lines)


def label_of(data: DatasetDict | Dataset) -> str:
    """What results and cards call the data: the benchmark's name, and the variant's where it is one.

    Empty for data that :func:`verify` has not seen, such as a folder of the user's.
    """
    dataset = next(iter(data.values())) if isinstance(data, DatasetDict) else data
    return dataset.info.description or ""


def verify_images(name: str, data: DatasetDict, size: tuple[int, int] | None = None) -> None:
    """Decodes every picture, on all cores.

    Args:
        size: width and height in pixels that every picture has; None where they differ.

    Raises:
        UleError: a picture that cannot be decoded, that has another size, or whose pixels occur in two splits; the
            error counts all of the first kind there is, in this order.
    """
    unreadable, misshapen, twice = [], [], []
    first_seen: dict[bytes, tuple[str, str]] = {}
    for split, image_id, pixels in _decoded(data):
        where = f"{split} {image_id}"
        if isinstance(pixels, str):
            unreadable.append(f"{where} ({pixels})")
            continue
        shape, digest = pixels
        if size is not None and shape != size:
            misshapen.append(f"{where} ({shape[0]} x {shape[1]})")
        other_split, other_id = first_seen.setdefault(digest, (split, image_id))
        if other_split != split:
            twice.append(f"{other_split} {other_id} = {where}")
    if unreadable:
        raise UleError(f"{name}: {len(unreadable)} unreadable images: {first_few(unreadable)}; get them anew")
    if misshapen:
        raise UleError(
            f"{name}: {len(misshapen)} images are not {size[0]} x {size[1]} pixels: {first_few(misshapen)}; "
            "get a copy that nobody resized, or name this one with --variant NAME"
        )
    if twice:
        raise UleError(
            f"{name}: {len(twice)} images occur in two splits: {first_few(twice)}; remove them from one of the splits"
        )


def _rows(found: Counts, published: Counts) -> list[tuple[str, str, int, int]]:
    """Split, group, published and found count, in the order of the published ones; groups without images left out."""
    rows = []
    for split in [*published, *(split for split in found if split not in published)]:
        expected, got = published.get(split, {}), found.get(split, {})
        if isinstance(expected, int):
            rows.append((split, "all groups", expected, sum(got.values())))
            continue
        for group in [*expected, *(group for group in got if group not in expected)]:
            rows.append((split, group, expected.get(group, 0), got.get(group, 0)))
    return [row for row in rows if row[2] or row[3]]


def _total(counts: Counts) -> int:
    return sum(sizes if isinstance(sizes, int) else sum(sizes.values()) for sizes in counts.values())


def _refuse_repeated_ids(name: str, data: DatasetDict) -> None:
    first_seen: dict[str, str] = {}
    twice = []
    for split, dataset in data.items():
        for image_id in dataset.with_format(None)["image_id"][:]:
            if image_id in first_seen:
                twice.append(f"{image_id} ({first_seen[image_id]} and {split})")
            first_seen[image_id] = split
    if twice:
        raise UleError(f"{name}: {len(twice)} images occur twice: {first_few(twice)}; keep one row for each")


def _decoded(data: DatasetDict) -> Iterator[tuple[str, str, str | tuple[tuple[int, int], bytes]]]:
    """Split, image_id, and (width and height, digest of the pixels) or what is wrong with the picture."""
    # a batch at a time: `Executor.map` would queue every picture of the data set
    with ThreadPoolExecutor() as threads:  # Pillow decodes outside Python's lock
        for split, dataset in data.items():
            rows = iter(
                dataset.with_format(None)
                .select_columns(["image", "image_id"])
                .cast_column("image", Image(decode=False))
            )
            while batch := list(islice(rows, 256)):
                for row, pixels in zip(batch, threads.map(_size_and_digest, batch), strict=True):
                    yield split, row["image_id"], pixels


def _size_and_digest(row: dict[str, Any]) -> str | tuple[tuple[int, int], bytes]:
    try:
        image = Image().decode_example(row["image"])
        return image.size, hashlib.blake2b(image.convert("RGB").tobytes(), digest_size=16).digest()
    except Exception as error:  # Pillow's plugins raise what they like
        return f"{type(error).__name__}: {error}".splitlines()[0]
