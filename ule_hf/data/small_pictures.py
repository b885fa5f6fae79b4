"""MNIST and CIFAR-10 from the files in circulation, as arrays."""

from __future__ import annotations

import gzip
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk

from ule_hf.data.archives import is_archive, unpack
from ule_hf.data.transforms import to_rgb
from ule_hf.errors import UleError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_NPZ_KEYS = (("images", "labels"), ("x_train", "y_train"), ("x_test", "y_test"))


def read_mnist(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """All digits in ``folder``, training and test together.

    It holds an `.npz` file (``images`` and ``labels``, or ``x_train``, ``y_train``, ``x_test`` and ``y_test``), the
    original `*-images-idx3-ubyte` and `*-labels-idx1-ubyte` (`.gz` or not), or a dataset of `datasets` (saved to disk,
    or Parquet) with the columns ``image`` and ``label``.

    Returns:
        Pictures, uint8 `[N, 28, 28]`, and digits, int64 `[N]`.

    Raises:
        UleError: none of these, or one that cannot be read.
    """
    _check_folder(folder)
    try:
        if files := sorted(folder.glob("*.npz")):
            parts = _read_npz(files[0])
        elif files := sorted(folder.glob("*-images-idx3-ubyte*")):
            parts = [(_read_idx(file), _read_idx(_labels_of(file))) for file in files]
        else:
            data = concatenate_datasets(list(_read_datasets(folder).values()))
            parts = [(np.stack([np.asarray(image.convert("L")) for image in data["image"]]), data["label"][:])]
        images, digits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    except UleError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UleError(f"MNIST in {folder} cannot be read ({error}); get it anew") from error
    if images.shape[1:] != (28, 28) or images.dtype != np.uint8 or len(images) != len(digits):
        raise UleError(f"{folder} holds {images.dtype} {images.shape} and {len(digits)} labels, which is no MNIST")
    return images, digits.astype(np.int64)


def read_cifar10(folder: Path, classes: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The pictures of some ``classes`` of CIFAR-10.

    ``folder`` holds `{train,test}/<class>/` with image files (or an archive of that), the official binary version
    (`data_batch_1.bin` ... `test_batch.bin`), or a dataset of `datasets` (saved to disk, or Parquet) with the columns
    ``img`` or ``image`` and ``label``.

    Returns:
        For ``train`` and ``test``: pictures, uint8 `[N, 32, 32, 3]`, and indices into ``classes``, int64 `[N]`.

    Raises:
        UleError: none of these, or one that cannot be read.
    """
    _check_folder(folder)
    try:
        if tree := _image_folder(folder):
            splits = {split: _read_images(tree / split, classes) for split in ("train", "test")}
        elif batches := sorted(folder.rglob("data_batch_*.bin")):
            binary = {"train": batches, "test": [batches[0].with_name("test_batch.bin")]}
            splits = {split: _read_binary(files, classes) for split, files in binary.items()}
        else:
            data = _read_datasets(folder)
            splits = {split: _select_classes(data[split], classes) for split in ("train", "test")}
    except UleError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise UleError(f"CIFAR-10 in {folder} cannot be read ({error}); get it anew") from error
    for split, (images, labels) in splits.items():
        for label, name in enumerate(classes):
            if not (labels == label).any():
                raise UleError(f"CIFAR-10 in {folder} has no {name} in {split}; get it anew")
        if images.shape[1:] != (32, 32, 3):
            raise UleError(
                f"{folder} holds pictures of {images.shape[1:]} instead of 32 x 32 RGB, which is no CIFAR-10"
            )
    return splits


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UleError(f"{folder} is no folder; --data_dir needs one with {folder.name}/ in it")


def _read_npz(file: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    with np.load(file, allow_pickle=False) as arrays:
        parts = [(arrays[images], arrays[labels]) for images, labels in _NPZ_KEYS if images in arrays]
    if not parts:
        raise UleError(f"{file} holds neither images and labels, nor x_train and y_train; get another copy of MNIST")
    return parts


def _labels_of(file: Path) -> Path:
    return file.with_name(file.name.replace("images-idx3", "labels-idx1"))


def _read_idx(file: Path) -> np.ndarray:
    """The format of http://yann.lecun.com/exdb/mnist: two zeros, type, number of axes, their lengths, the data."""
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, math.prod(shape.tolist()), offset=4 + 4 * axes).reshape(shape)


def _read_datasets(folder: Path) -> DatasetDict:
    try:
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        data = load_from_disk(folder) if saved else load_dataset(str(folder))
    except Exception as error:  # datasets raises what it likes
        raise UleError(f"{folder} holds nothing that is known: {str(error).splitlines()[0]}; see the docs") from error
    return DatasetDict(train=data) if isinstance(data, Dataset) else data


def _image_folder(folder: Path) -> Path | None:
    """The folder around `train/` and `test/`, of ``folder`` itself or of the one archive in it."""
    for candidate in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if all((candidate / split / "automobile").is_dir() for split in ("train", "test")):
            return candidate
    archives = [path for path in folder.iterdir() if is_archive(path)]
    return _image_folder(unpack(archives[0], "cifar10")) if len(archives) == 1 else None


def _read_images(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted((folder / name).iterdir()):
            try:
                with PIL.Image.open(file) as image:
                    images.append(np.asarray(to_rgb(image)))
            except OSError as error:
                raise UleError(f"{file} cannot be decoded ({error}); get CIFAR-10 anew") from error
            labels.append(label)
    return np.stack(images), np.array(labels)


def _read_binary(files: Sequence[Path], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a label and 32 × 32 red, green and blue values."""
    rows = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
    ids = [CIFAR10_CLASSES.index(name) for name in classes]
    rows = rows[np.isin(rows[:, 0], ids)]
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.array([ids.index(label) for label in rows[:, 0]])


def _select_classes(data: Dataset, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    ids = [CIFAR10_CLASSES.index(name) for name in classes]
    rows = [i for i, label in enumerate(data["label"]) if label in ids]
    data = data.select(rows)
    images = data["img" if "img" in data.column_names else "image"]
    return np.stack([np.asarray(to_rgb(image)) for image in images]), np.array([ids.index(i) for i in data["label"]])
