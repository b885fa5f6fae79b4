"""Where a teacher and its student look in pictures of your own: `ule-hf explain`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ule_hf.attribution import Grid
from ule_hf.data.transforms import EvalTransform, pixel_format, to_rgb
from ule_hf.errors import UleError
from ule_hf.hub import STUDENT_FOLDER, NoStudent, load_model_folder, load_student, load_teacher
from ule_hf.report.pictures import Explained, View, draw
from ule_hf.report.saliency import BATCH, MapKind, blurred, saliency
from ule_hf.variant import Attribution, parse_grid

#: Other pictures at the ends of the paths from one, at most; each costs `saliency.POINTS` forwards and backwards.
REFERENCES = 8


class Pair(NamedTuple):
    """A teacher, its transform, and its student where it was kept. ``trained_with``: its attribution and grid."""

    teacher: PreTrainedModel
    transform: EvalTransform
    student: PreTrainedModel | None
    trained_with: tuple[Attribution, Grid | None]

    def models(self) -> dict[str, PreTrainedModel]:
        """Student first, as it teaches."""
        student = {} if self.student is None else {"student": self.student}
        return {**student, "teacher": self.teacher}


def load_pair(model: str | os.PathLike, student: str | os.PathLike | None = None) -> Pair:
    """The teacher of an output folder or Hub repository, and the student beside it or in the folder ``student``.

    A local folder may hold any image classifier; it then stands alone.

    Raises:
        UleError: there is no image classifier, or the student knows other classes.
    """
    folder = Path(model)
    teacher = load_model_folder(str(model), folder, folder) if folder.is_dir() else load_teacher(model)
    if student is not None:
        if not Path(student).is_dir():
            raise UleError(f"{student}: is no folder; name the folder of the student's config.json")
        of_student = load_model_folder(str(student), Path(student), Path(student)).classifier
    elif folder.is_dir():
        inside = folder / STUDENT_FOLDER
        of_student = load_model_folder(str(inside), folder, inside).classifier if inside.is_dir() else None
    else:
        of_student = _student_on_the_hub(model)
    if of_student is not None and class_names(of_student) != class_names(teacher.classifier):
        raise UleError(
            f"{student or model}: the student tells {class_names(of_student)}, the teacher "
            f"{class_names(teacher.classifier)}; give the student that was trained with it"
        )
    return Pair(teacher.classifier, teacher.transform, of_student, _trained_with(teacher.options))


def _student_on_the_hub(repo_id: str | os.PathLike) -> PreTrainedModel | None:
    try:
        return load_student(repo_id).classifier
    except NoStudent:
        return None


def _trained_with(options: dict[str, Any]) -> tuple[Attribution, Grid | None]:
    return options.get("attribution") or "gradient", parse_grid(options.get("grid") or "dense")


def class_names(classifier: PreTrainedModel) -> list[str]:
    """The classes in the order of their ids."""
    return [classifier.config.id2label[i] for i in range(classifier.config.num_labels)]


def read_image(path: str | os.PathLike) -> PIL.Image.Image:
    """A picture as RGB, turned upright.

    Raises:
        UleError: there is none, or it cannot be decoded.
    """
    try:
        with PIL.Image.open(path) as image:
            return to_rgb(PIL.ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise UleError(f"{path}: there is no such file; name pictures") from error
    except Exception as error:  # Pillow's plugins raise what they like
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UleError(f"{path}: is no picture that can be read ({reason}); give a JPEG, PNG or the like") from error


def explain(
    pair: Pair,
    images: Sequence[PIL.Image.Image],
    names: Sequence[str],
    attribution: Attribution | None = None,
    grid: str | None = None,
) -> list[Explained]:
    """For each image what student and teacher say, and their maps.

    The paths of ``path`` end at the other images (at `REFERENCES` of them), or, for a lone image, at its blurred copy.

    Args:
        names: of the images, for the captions.
        attribution: ``gradient`` or ``path``; by default what the pair was trained with.
        grid: ``ROWSxCOLUMNS`` or ``dense``; by default as in training where the attribution is that of the training,
            else dense.

    Raises:
        UleError: a grid that does not fit the pictures.
    """
    kind = attribution or pair.trained_with[0]
    cells = parse_grid(grid) if grid else pair.trained_with[1] if kind == pair.trained_with[0] else None
    pixels = pair.transform({"image": list(images)})["pixel_values"]
    references, ends_at = None, ""
    if kind == "path" and len(images) == 1:
        references, ends_at = blurred(pixels)[:, None], "its blurred copy"
    elif kind == "path":
        others = [_spread([j for j in range(len(images)) if j != i], REFERENCES) for i in range(len(images))]
        references, ends_at = pixels[torch.tensor(others)], f"{len(others[0])} of the other pictures"
    return explain_pixels(pair, pixels, names, kind, cells, references, describe(kind, cells, ends_at))


def explain_pixels(
    pair: Pair,
    pixels: Tensor,
    names: Sequence[str],
    kind: Attribution,
    grid: Grid | None,
    references: Tensor | None,
    caption: str,
    truths: Sequence[str] | None = None,
) -> list[Explained]:
    """As :func:`explain`, of what the pair's transform has made.

    Args:
        pixels: ``[B, C, H, W]``. references: ``[B, R, C, H, W]``, for ``path``.
        truths: the right class of each, where they are known.
    """
    classes, shown = class_names(pair.teacher), visible(pixels, pair.transform)
    found = {}
    for name, classifier in pair.models().items():
        with torch.no_grad():
            probabilities = torch.cat([classifier(pixel_values=part).logits.softmax(1) for part in pixels.split(BATCH)])
        found[name] = (saliency(classifier, pixels, kind, references, grid).numpy(), probabilities.tolist())

    def views(i: int) -> list[View]:
        truth = None if truths is None else truths[i]
        return [View(m, maps[i], dict(zip(classes, p[i], strict=True)), truth) for m, (maps, p) in found.items()]

    return [Explained(name, shown[i], views(i), caption) for i, name in enumerate(names)]


def describe(kind: MapKind, grid: Grid | None, ends_at: str = "") -> str:
    """The caption: what the maps are.

    >>> describe("gradient", None)
    'Dark: where the largest logit changes most with the pixels (input gradient). The line encloses half of it.'
    """
    if kind == "gradient":
        text = "Dark: where the largest logit changes most with the pixels (input gradient)"
    elif kind == "path":
        text = f"Dark: what the predicted class hangs on from the picture to {ends_at} (expected gradients)"
    else:
        text = "Dark: where the last convolution speaks for the predicted class (Grad-CAM)"
    cells = f", summed over {grid[0]} x {grid[1]} cells" if grid else ""
    return f"{text}{cells}. The line encloses half of it."


def visible(pixels: Tensor, transform: EvalTransform) -> np.ndarray:
    """What the models see, as pictures: ``[B, H, W, 3]`` in [0, 1]."""
    target = pixel_format(transform.processor)
    mean, std = (torch.tensor(values, dtype=pixels.dtype)[:, None, None] for values in (target.mean, target.std))
    return (pixels * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def write_explanations(explained: Sequence[Explained], folder: Path, stems: Sequence[str]) -> list[Path]:
    """A PNG for each, with its alt text as the PNG's description; `<stem>-explained.png`, numbered where two agree."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for one, stem in zip(explained, stems, strict=True):
        number = sum(path.name.startswith(f"{stem}-explained") for path in paths)
        path = folder / f"{stem}-explained{f'-{number + 1}' if number else ''}.png"
        draw(one).savefig(path, metadata={"Title": one.name, "Description": one.alt_text()})
        paths.append(path)
    return paths


def explain_main(argv: list[str]) -> str:
    """``ule-hf explain``; returns a line for each picture: where it was written, and what it shows."""
    parser = argparse.ArgumentParser("ule-hf explain", description="Show where a teacher and its student look.")
    parser.add_argument("model", help="Output folder of ule-hf train, a teacher on the Hub, or a folder with a model.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="Pictures.")
    parser.add_argument("--output", default="explanations", help="Folder for the PNGs.")
    parser.add_argument("--student", help="Folder of the student, where it is not in MODEL/student.")
    parser.add_argument("--attribution", choices=get_args(Attribution), help="Default: what the teacher learned with.")
    parser.add_argument("--grid", help="Cells of the maps, ROWSxCOLUMNS or dense. Default: as in training.")
    args = parser.parse_args(argv)
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise UleError(f"--output {args.output} is a file; name a folder")
    images = [read_image(path) for path in args.images]
    pair = load_pair(args.model, args.student)
    stems = [Path(path).stem for path in args.images]
    explained = explain(pair, images, [Path(path).name for path in args.images], args.attribution, args.grid)
    paths = write_explanations(explained, Path(args.output), stems)
    lines = [f"{path}: {one.alt_text()}" for path, one in zip(paths, explained, strict=True)]
    return "\n".join([*lines, explained[0].caption])


def _spread(items: list[int], count: int) -> list[int]:
    """At most ``count`` of ``items``, evenly over their order."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
