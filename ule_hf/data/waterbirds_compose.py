"""Composes Waterbirds from CUB-200-2011, its segmentations and Places365, as kohpangwei/group_DRO does, with masks.

With the official `metadata.csv` every bird gets its official background, so that the groups are the published ones and
the pictures the official ones up to resampling and JPEG. Without it, split and backgrounds are drawn anew: a variant.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageOps
from tqdm.auto import tqdm

from ule_hf.data.archives import building
from ule_hf.data.image_table import checked_paths, first_few, read_csv
from ule_hf.errors import UleError
from ule_hf.seeds import named_seed

#: A species whose name contains one of these is a water bird: for its "tern" Eastern Towhee too, and two Western birds,
#: which is the published label noise.
WATER_BIRDS = (
    *("albatross", "auklet", "cormorant", "frigatebird", "fulmar", "gull", "jaeger", "kittiwake", "pelican", "puffin"),
    *("tern", "gadwall", "grebe", "mallard", "merganser", "guillemot", "pacific_loon"),
)
#: Folders of Places365, land and water.
BACKGROUNDS = (("b/bamboo_forest", "f/forest/broadleaf"), ("o/ocean", "l/lake/natural"))
#: Share of training images whose background is that of their class; in validation and test it is half.
CORRELATION = 0.95
#: Share of CUB's training images that is validation.
HELD_OUT = 0.2


def compose(
    cub_dir: str | os.PathLike[str],
    places_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    segmentations_dir: str | os.PathLike[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> None:
    """Writes ``output_dir`` as :func:`ule_hf.data.waterbirds.load` reads it; goes on where it was stopped.

    Args:
        cub_dir: `CUB_200_2011`, with `images/`, `images.txt` and `train_test_split.txt`.
        places_dir: Places365-Standard's `data_large`, with `o/ocean/*.jpg` and so on.
        segmentations_dir: CUB's segmentations, by default `segmentations` in ``cub_dir``.
        metadata: the official `metadata.csv`; by default everything is drawn, from ``seed``.

    Raises:
        UleError: ``output_dir`` is there, a file is missing or cannot be read, or the disk is full.
    """
    cub, places, output = Path(cub_dir), Path(places_dir), Path(output_dir)
    segmentations = Path(segmentations_dir) if segmentations_dir is not None else cub / "segmentations"
    table = read_csv(Path(metadata)) if metadata is not None else draw(cub, places, seed)
    for column in ("img_filename", "y", "split", "place", "place_filename"):
        if column not in table:
            raise UleError(f"{metadata} has no column '{column}'; it tells which background a bird has")
    masks = table["img_filename"].map(lambda image: os.path.splitext(image)[0] + ".png")
    backgrounds = table["place_filename"].str.lstrip("/")
    for root, files in {cub / "images": table["img_filename"], segmentations: masks}.items():
        checked_paths(root, pd.DataFrame({"image": files, "row": files}).set_index("row"))
    _check_backgrounds(places, backgrounds)
    with building(output, keep_parts=True) as temporary:
        if temporary is None:
            raise UleError(f"{output} is there already; remove it, or name another folder")
        _begin(temporary, table)
        jobs = [
            functools.partial(
                _compose_one,
                *(cub / "images" / image, segmentations / mask, places / background),
                *(temporary / image, temporary / "masks" / mask),
            )
            for image, mask, background in zip(table["img_filename"], masks, backgrounds, strict=True)
        ]
        with ThreadPoolExecutor() as threads:
            try:
                list(tqdm(threads.map(_call, jobs), total=len(jobs), desc="composing"))
            except BaseException:
                threads.shutdown(cancel_futures=True)  # what was planned after the error would still be done
                raise


def draw(cub: Path, places: Path, seed: int) -> pd.DataFrame:
    """Split, place and background for every picture of CUB, with the columns of the official `metadata.csv`.

    Raises:
        UleError: CUB's lists are missing or cannot be read, or there are too few backgrounds.
    """
    lists = []
    for name, column in {"images.txt": "img_filename", "train_test_split.txt": "is_train"}.items():
        try:
            lists.append(pd.read_csv(cub / name, sep=" ", names=["img_id", column], index_col="img_id"))
        except (OSError, ValueError) as error:
            raise UleError(f"{cub / name} cannot be read: {error}; cub_dir is the folder CUB_200_2011") from error
    table = lists[0].join(lists[1])
    table["y"] = [int(is_water_bird(image)) for image in table["img_filename"]]
    rng = np.random.default_rng(named_seed(seed, "waterbirds"))
    train = table.index[table["is_train"] == 1]
    table["split"] = np.where(table["is_train"] == 1, 0, 2)
    table.loc[rng.choice(train, round(HELD_OUT * len(train)), replace=False), "split"] = 1
    table["place"] = 0
    for (split, label), rows in table.groupby(["split", "y"]).groups.items():
        share = 0.5 if split else (CORRELATION if label else 1 - CORRELATION)
        table.loc[rng.choice(rows, round(share * len(rows)), replace=False), "place"] = 1
    table["place_filename"] = ""
    for place, folders in enumerate(BACKGROUNDS):
        files = sorted(f"/{folder}/{file.name}" for folder in folders for file in (places / folder).glob("*.jpg"))
        needed = table["place"] == place
        if len(files) < needed.sum():
            raise UleError(
                f"{places}: {needed.sum()} backgrounds are needed of {', '.join(folders)}, {len(files)} there"
            )
        table.loc[needed, "place_filename"] = rng.permutation(files)[: needed.sum()]
    return table.drop(columns="is_train").reset_index()


def is_water_bird(image: str) -> bool:
    """Of a path such as ``001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg``."""
    species = image.split("/")[0].split(".")[1].lower()
    return any(name in species for name in WATER_BIRDS)


def paste(bird: PIL.Image.Image, mask: PIL.Image.Image, background: PIL.Image.Image) -> PIL.Image.Image:
    """The bird before the background, which is cropped in its middle to the bird's picture and resized.

    Args:
        mask: grey, of the bird's size; 255 is all bird.
    """
    weight = np.asarray(mask.convert("L"), dtype=np.float64)[..., None] / 255
    behind = np.asarray(PIL.ImageOps.fit(background.convert("RGB"), bird.size, PIL.Image.Resampling.LANCZOS))
    # each part is rounded for itself, as the official ones were
    parts = np.around(np.asarray(bird.convert("RGB")) * weight) + np.around(behind * (1 - weight))
    return PIL.Image.fromarray(np.minimum(parts, 255).astype(np.uint8))


def _call(job: Callable[[], None]) -> None:
    job()


def _compose_one(bird: Path, mask: Path, background: Path, image_out: Path, mask_out: Path) -> None:
    if mask_out.is_file():  # written last
        return
    try:
        pictures = [PIL.Image.open(path) for path in (bird, mask, background)]
        composed = paste(*pictures)
    except OSError as error:
        raise UleError(f"{bird.name}, its mask or {background} cannot be read: {error}; get it anew") from error
    except ValueError as error:
        raise UleError(f"{mask} is not of the size of {bird.name} ({error}); get CUB's segmentations anew") from error
    for picture, path in ((composed, image_out), (pictures[1].convert("L"), mask_out)):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{path.name}")
        picture.save(part)
        part.rename(path)


def _check_backgrounds(places: Path, backgrounds: pd.Series) -> None:
    outside = [path for path in backgrounds if ".." in Path(path).parts]
    missing = outside or [path for path in backgrounds if not (places / path).is_file()]
    if missing:
        raise UleError(f"{places}: {len(missing)} backgrounds are missing: {first_few(missing)}; is it data_large?")


def _begin(temporary: Path, table: pd.DataFrame) -> None:
    """Writes the metadata; an earlier try with other metadata has left what is no use now."""
    file, text = temporary / "metadata.csv", table.to_csv(index=False)
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    if any(temporary.iterdir()):
        raise UleError(f"{temporary} is left of another composition; remove it")
    file.write_text(text, encoding="utf-8")
