from __future__ import annotations

import gzip
import shutil
import struct
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ule_hf.arguments import parse
from ule_hf.data import load
from ule_hf.data.dominoes import build_dominoes
from ule_hf.data.small_pictures import CIFAR10_CLASSES, read_cifar10, read_mnist
from ule_hf.errors import UleError
from ule_hf.experiment import load_data

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.usefixtures("cache")


@lru_cache
def mnist():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (60, 28, 28), dtype=np.uint8), (np.arange(60) % 3).astype(np.uint8)


@lru_cache
def cifar10():
    """Three classes, 20 training and 6 test pictures of each."""
    rng = np.random.default_rng(1)
    return {
        split: {
            name: rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8) for name in ("automobile", "cat", "truck")
        }
        for split, size in (("train", 20), ("test", 6))
    }


def write_npz(folder):
    folder.mkdir(parents=True)
    images, labels = mnist()
    np.savez(folder / "mnist.npz", x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])


def write_npz_of_one_part(folder):
    folder.mkdir(parents=True)
    np.savez(folder / "digits.npz", images=mnist()[0], labels=mnist()[1])


def write_idx(folder, compress=False):
    folder.mkdir(parents=True)
    images, labels = mnist()
    for name, part in (("t10k", slice(40, None)), ("train", slice(40))):
        for kind, array in (("images-idx3-ubyte", images[part]), ("labels-idx1-ubyte", labels[part])):
            content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
            file = folder / f"{name}-{kind}{'.gz' if compress else ''}"
            file.write_bytes(gzip.compress(content) if compress else content)


def write_mnist_dataset(folder):
    images, labels = mnist()
    columns = {"image": [PIL.Image.fromarray(image) for image in images], "label": labels}
    features = Features(image=Image(), label=ClassLabel(names=[str(d) for d in range(10)]))
    data = Dataset.from_dict(columns, features=features)
    DatasetDict(train=data.select(range(40)), test=data.select(range(40, 60))).save_to_disk(folder)


def write_images(folder):
    for split, classes in cifar10().items():
        for name, images in classes.items():
            (folder / split / name).mkdir(parents=True)
            for i, image in enumerate(images):
                PIL.Image.fromarray(image).save(folder / split / name / f"{i:04d}.png")


def write_zip(folder):
    write_images(folder / "files")
    with zipfile.ZipFile(folder / "cifar10.zip", "w") as archive:
        for file in (folder / "files").rglob("*.png"):
            archive.write(file, file.relative_to(folder / "files"))
    shutil.rmtree(folder / "files")


def write_binary(folder):
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    for split, classes in cifar10().items():
        rows = [
            np.concatenate([[CIFAR10_CLASSES.index(name)], image.transpose(2, 0, 1).ravel()])
            for name, images in classes.items()
            for image in images
        ]
        parts = {"data_batch_1": rows[:25], "data_batch_2": rows[25:]} if split == "train" else {"test_batch": rows}
        for name, part in parts.items():
            np.array(part, dtype=np.uint8).tofile(folder / "cifar-10-batches-bin" / f"{name}.bin")


def write_cifar10_dataset(folder):
    features = Features(img=Image(), label=ClassLabel(names=list(CIFAR10_CLASSES)))
    splits = {}
    for split, classes in cifar10().items():
        columns = {"img": [PIL.Image.fromarray(image) for images in classes.values() for image in images]}
        columns["label"] = [CIFAR10_CLASSES.index(name) for name, images in classes.items() for _ in images]
        splits[split] = Dataset.from_dict(columns, features=features)
    DatasetDict(splits).save_to_disk(folder)


@pytest.fixture
def folder(tmp_path):
    write_npz(tmp_path / "dominoes" / "mnist")
    write_images(tmp_path / "dominoes" / "cifar10")
    return tmp_path / "dominoes"


@pytest.mark.parametrize(
    "write",
    [write_npz, write_npz_of_one_part, write_idx, lambda folder: write_idx(folder, compress=True), write_mnist_dataset],
)
def test_mnist_in_all_its_forms(tmp_path, write):
    write(tmp_path / "mnist")
    images, labels = read_mnist(tmp_path / "mnist")
    # the two idx files come in the order of their names: test before training
    order = np.lexsort(images.reshape(60, -1).T)
    expected = np.lexsort(mnist()[0].reshape(60, -1).T)
    assert np.array_equal(images[order], mnist()[0][expected])
    assert np.array_equal(labels[order], mnist()[1][expected])


@pytest.mark.parametrize("write", [write_images, write_zip, write_binary, write_cifar10_dataset])
def test_cifar10_in_all_its_forms(tmp_path, write):
    write(tmp_path / "cifar10")
    splits = read_cifar10(tmp_path / "cifar10", ("truck", "automobile"))
    for split, (images, labels) in splits.items():
        for label, name in enumerate(("truck", "automobile")):
            assert np.array_equal(images[labels == label], cifar10()[split][name])


@pytest.mark.parametrize("correlation", [0.75, 1.0])
def test_shortcut_agrees_exactly_as_often_as_asked(folder, correlation):
    data = load("dominoes", data_dir=folder, correlation=correlation)
    assert {split: len(data[split]) for split in data} == {"train": 36, "validation": 4, "test": 24}
    for split in ("train", "validation"):
        labels, shortcuts = np.array(data[split]["label"]), np.array(data[split]["shortcut"])
        for label in (0, 1):
            agree = shortcuts[labels == label] == label
            assert agree.sum() == round(correlation * len(agree))
    assert np.bincount(data["test"]["group"][:]).tolist() == [6, 6, 6, 6]


def test_pixels_are_those_that_the_columns_tell(folder):
    digits, digit_labels = read_mnist(folder / "mnist")
    pictures = read_cifar10(folder / "cifar10", ("automobile", "truck"))
    for split in build_dominoes(folder, 0.75).values():
        for row in split:
            upper, source, lower = row["image_id"].split("-")
            image = np.asarray(row["image"])
            assert image.shape == (64, 32, 3)
            assert (image[2:30, 2:30] == digits[int(upper)][..., None]).all()
            assert not image[:2].any() and not image[30:32].any() and not image[:32, :2].any()
            assert np.array_equal(image[32:], pictures[source][0][int(lower)])
            assert digit_labels[int(upper)] == row["shortcut"]
            assert pictures[source][1][int(lower)] == row["label"]
            assert row["group"] == 2 * row["label"] + row["shortcut"]


def test_no_picture_and_no_digit_in_two_splits(folder):
    data = build_dominoes(folder)
    for part in (slice(0, 1), slice(1, 3)):
        used = [{"-".join(i.split("-")[part]) for i in data[split]["image_id"]} for split in data]
        assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]
    assert sum(len(ids) for ids in used) == 40 + 12  # every picture is used
    assert len(set(data["test"]["image_id"])) == 24


def test_seed_changes_the_splits_and_correlation_does_not(folder):
    ids = [
        sorted(i[6:] for i in build_dominoes(folder, c, s)["train"]["image_id"]) for c, s in ((1, 0), (0.6, 0), (1, 1))
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="MNIST and CIFAR-10 are not here")
def test_real_pictures():
    data = load("dominoes", data_dir=SHARED)
    assert {split: len(data[split]) for split in data} == {"train": 1800, "validation": 200, "test": 1200}
    image = np.asarray(data["train"][0]["image"])
    assert image[:32].std() > 30 and image[32:].std() > 10


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f / "mnist"), "mnist is no folder; --data_dir needs"),
        (lambda f: (f / "mnist" / "mnist.npz").unlink(), "holds nothing that is known"),
        (lambda f: (f / "mnist" / "mnist.npz").write_bytes(b"PK no zip"), "MNIST in .* cannot be read"),
        (lambda f: np.savez(f / "mnist" / "mnist.npz", pictures=[1]), "holds neither images and labels"),
        (lambda f: np.savez(f / "mnist" / "mnist.npz", images=np.zeros((3, 8, 8)), labels=[0, 1, 1]), "is no MNIST"),
        (lambda f: shutil.rmtree(f / "cifar10" / "test" / "truck"), "CIFAR-10 in .* cannot be read"),
        (lambda f: (f / "cifar10" / "test" / "truck" / "0003.png").write_bytes(b"x"), r"0003\.png cannot be decoded"),
    ],
)
def test_bad_files(folder, damage, message):
    damage(folder)
    with pytest.raises(UleError, match=message):
        build_dominoes(folder)


def test_bad_options(folder):
    with pytest.raises(UleError, match=r"correlation 0\.4 is outside"):
        build_dominoes(folder, 0.4)
    with pytest.raises(UleError, match="--data_dir"):
        build_dominoes()
    for classes in (("cat", "cat"), ("cat", "lorry"), ("cat",)):
        with pytest.raises(UleError, match="name two of airplane"):
            build_dominoes(folder, classes=classes)


def test_other_classes(folder):
    """The same splits and digits; pictures and names are those of the classes that are asked for, in their order."""
    default, other = build_dominoes(folder), build_dominoes(folder, classes=("truck", "cat"))
    for split in default:
        assert other[split].features["label"].names == ["truck", "cat"]
        assert (
            other[split]["label"] == default[split]["label"] and other[split]["shortcut"] == default[split]["shortcut"]
        )
        for image, label in zip(other[split]["image"], other[split]["label"], strict=True):
            of_class = cifar10()["test" if split == "test" else "train"][("truck", "cat")[label]]
            assert (np.asarray(image)[32:] == of_class).all(axis=(1, 2, 3)).any()


def test_classes_on_the_command_line(folder):
    asked = ["--dataset", "dominoes", "--data_dir", str(folder), "--output_dir", "x", "--classes"]
    data = load_data(parse([*asked, "cat", "truck"])[0], seed=0)
    assert data["train"].features["label"].names == ["cat", "truck"]
    assert load_data(parse(asked[:-1])[0], seed=0)["train"].features["label"].names == ["automobile", "truck"]
