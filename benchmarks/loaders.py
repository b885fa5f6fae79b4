"""Throughput of each loader on one core: images a second, decoded, and through the published transforms.

python -m benchmarks.loaders                                        # on stand-ins in the official sizes and formats
python -m benchmarks.loaders --dataset waterbirds --data_dir DIR    # on a copy of yours
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
from datasets import Dataset, DatasetDict, Image

from ule_hf.backbones import load_backbone
from ule_hf.data import load, spawrious, urbancars
from ule_hf.data.preprocessing import transforms_of

BATCH = 32


def picture(number: int, width: int, height: int) -> PIL.Image.Image:
    """Blurred noise: JPEG and PNG take about as long for it as for a photograph."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    smooth = np.asarray(PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC))
    return PIL.Image.fromarray((0.9 * smooth + rng.integers(0, 25, smooth.shape)).astype(np.uint8))


def save(image: PIL.Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_waterbirds(root: Path, count: int) -> None:
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for i in range(3 * count):
        lines.append(f"{i},birds/{i}.jpg,{i % 2},{i // count},{i // 2 % 2},x.jpg")
        save(picture(i, 480, 360), root / "birds" / f"{i}.jpg")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def make_celeba(root: Path, count: int) -> None:
    names = [f"{i:06d}.jpg" for i in range(1, 3 * count + 1)]
    signs = ["-1 -1", "-1  1", " 1 -1", " 1  1"]
    attributes = [str(len(names)), "Blond_Hair Male"] + [f"{n} {signs[i % 4]}" for i, n in enumerate(names)]
    (root / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (root / "list_eval_partition.txt").write_text("".join(f"{n} {i // count}\n" for i, n in enumerate(names)))
    for i, name in enumerate(names):
        save(picture(i, 178, 218), root / "img_align_celeba" / name)


def make_spawrious(root: Path, count: int) -> None:
    folders = sorted({(c.folder, c.location, c.breed) for c in spawrious.cells("o2o_hard")})
    for number, folder in enumerate(folders):
        for i in range(max(5, count // 8)):
            save(picture(1000 * number + i, 224, 224), root.joinpath(*folder, f"{i}.png"))


def make_urbancars(root: Path, count: int) -> None:
    for number, (split, *kinds) in enumerate(product(urbancars.FOLDERS.items(), *[urbancars.LABELS] * 3)):
        folder = urbancars.folder_of("0.95" if split[0] == "train" else "0.5")
        for i in range(max(1, count // 8)):
            file = root / folder / split[1] / "obj-{}_bg-{}_co_occur_obj-{}".format(*kinds) / f"{i:03d}.jpg"
            save(picture(1000 * number + i, 256, 256), file)


MAKE: dict[str, Callable[[Path, int], None]] = {
    "waterbirds": make_waterbirds,
    "celeba": make_celeba,
    "spawrious": make_spawrious,
    "urbancars": make_urbancars,
}


def images_per_second(dataset: Dataset, seconds: float = 3.0) -> float:
    """Of batches, one after the other, for at least so many seconds."""
    dataset[:BATCH]  # what is done once
    start, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        first = done % max(1, len(dataset) - BATCH)
        done += len(next(iter(dataset[first : first + BATCH].values())))
    return done / passed


def measure(name: str, data: DatasetDict, loading: float) -> str:
    """A row of the table."""
    _, processor = load_backbone("test_resnet", label_names=["a", "b"], image_size=224, seed=0)
    others = [column for column, feature in data["train"].features.items() if isinstance(feature, Image)]
    train = data["train"].remove_columns([column for column in others if column != "image"])
    published = name in MAKE
    training, evaluation = transforms_of(train, processor, "published" if published else "none", seed=0)
    speeds = [
        images_per_second(train.select_columns(["image"])),
        images_per_second(train.with_transform(evaluation)),
        images_per_second(train.with_transform(training)),
    ]
    size = "{} x {}".format(*train[0]["image"].size)
    count = sum(len(split) for split in data.values())
    cells = [name, size, f"{count / loading:.0f}", *(f"{speed:.0f}" for speed in speeds)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=[*MAKE, "dominoes", "digits"], help="By default all but dominoes.")
    parser.add_argument("--data_dir", type=Path, help="A copy of yours; dominoes needs one.")
    parser.add_argument("--images", type=int, default=256, help="Stand-ins in each split, about.")
    args = parser.parse_args()
    if args.data_dir and not args.dataset:
        parser.error("--data_dir needs --dataset")
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    print("| dataset | pixels | first load | decode | decode, evaluation | decode, training |")
    print("|---|---|---:|---:|---:|---:|")
    for name in [args.dataset] if args.dataset else [*MAKE, "digits"]:
        with tempfile.TemporaryDirectory() as folder:
            datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"  # so that the first load is the first
            options = {}
            if name != "digits":
                options["data_dir"] = args.data_dir or Path(folder) / "data"
            if name in MAKE:
                options["variant"] = "measured"
                if not args.data_dir:
                    options["data_dir"].mkdir()
                    MAKE[name](options["data_dir"], args.images)
            start = time.perf_counter()
            data = load(name, **options)
            print(measure(name, data, time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
