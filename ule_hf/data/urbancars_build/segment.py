"""Masks of the cars: the panoptic segment that fits a car's annotated box best."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, BaseImageProcessor, MaskFormerForInstanceSegmentation

from ule_hf.data.image_table import first_few
from ule_hf.data.urbancars_build.compose import open_rgb, save_whole
from ule_hf.data.urbancars_build.ingredients import Car
from ule_hf.errors import UleError

logger = logging.getLogger(__name__)

#: The authors' model (Swin-L, COCO panoptic) in transformers.
CHECKPOINT = "facebook/maskformer-swin-large-coco"
#: Classes of which a segment may be the car.
_CAR_CLASSES = ("car", "truck")
#: Least probability of a segment's class, and least share of it that no other segment covers; the authors'.
_THRESHOLD = 0.8

Box = tuple[int, int, int, int]


class CarSegmenter:
    """MaskFormer (Cheng et al. 2021) with panoptic classes, of which two are car and truck.

    Raises:
        UleError: the model knows neither.
    """

    def __init__(self, model: MaskFormerForInstanceSegmentation, processor: BaseImageProcessor):
        self.model = model.eval()
        self.processor = processor
        self.car_ids = {i for i, name in model.config.id2label.items() if name in _CAR_CLASSES}
        if not self.car_ids:
            raise UleError(
                f"the segmenter knows neither {' nor '.join(_CAR_CLASSES)}; use one that was trained on COCO"
            )

    @classmethod
    def from_pretrained(cls, name: str = CHECKPOINT, device: str = "cpu") -> CarSegmenter:
        """Of the Hub, or of a folder that `save_pretrained` wrote.

        Raises:
            UleError: there is no such model, or the Hub cannot be reached.
        """
        try:
            model = MaskFormerForInstanceSegmentation.from_pretrained(name)
            processor = AutoImageProcessor.from_pretrained(name)
        except OSError as error:
            raise UleError(f"the segmenter {name} cannot be had: {str(error).splitlines()[0]}") from error
        return cls(model.to(device), processor)

    @torch.no_grad()
    def __call__(self, image: PIL.Image.Image, box: Box) -> np.ndarray | None:
        """Bool `[H, W]`, the car in ``box``; None where no segment of a car meets the box."""
        inputs = self.processor(image, return_tensors="pt").to(self.model.device)
        panoptic = self.processor.post_process_panoptic_segmentation(
            self.model(**inputs),
            threshold=_THRESHOLD,
            overlap_mask_area_threshold=_THRESHOLD,
            label_ids_to_fuse=set(),
            target_sizes=[(image.height, image.width)],
        )[0]
        ids = [segment["id"] for segment in panoptic["segments_info"] if segment["label_id"] in self.car_ids]
        return best_segment(panoptic["segmentation"].cpu().numpy(), ids, box)


def best_segment(segmentation: np.ndarray, ids: Sequence[int], box: Box) -> np.ndarray | None:
    """The segment of ``ids`` with the highest intersection over union with ``box``, bool `[H, W]`.

    None where none meets the box. A segment that fills the picture is none: nothing would be cut out.

    >>> segmentation = np.array([[1, 1, 2, 2], [1, 1, 2, 3]])
    >>> best_segment(segmentation, ids=[1, 2], box=(2, 0, 3, 1)).astype(int)
    array([[0, 0, 1, 1],
           [0, 0, 1, 0]])
    """
    left, top, right, bottom = box
    inside = np.zeros(segmentation.shape, dtype=bool)
    inside[top : bottom + 1, left : right + 1] = True
    best, best_overlap = None, 0.0
    for segment in (segmentation == i for i in ids):
        overlap = (segment & inside).sum() / (segment | inside).sum()
        if overlap > best_overlap and not segment.all():
            best, best_overlap = segment, overlap
    return best


def segment_cars(
    cars: Sequence[Car],
    stanford_cars: Path,
    masks: Path,
    segmenter: Callable[[PIL.Image.Image, Box], np.ndarray | None],
) -> None:
    """Writes the mask of each car to ``masks``; those that are there already stay, so that it can be stopped.

    Args:
        cars: as :meth:`ule_hf.data.urbancars_build.Sources.cars` lists them.
        segmenter: such as a :class:`CarSegmenter`; a car for which it gives None gets no file.

    Raises:
        UleError: a picture that is missing or cannot be decoded, or a full disk.
    """
    not_found = []
    for car in tqdm(cars, desc="segmenting", unit="car"):
        file = masks / car.mask_file
        if file.is_file():
            continue
        mask = segmenter(open_rgb(stanford_cars / car.file), car.box)
        if mask is None:
            not_found.append(car.file)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        save_whole(PIL.Image.fromarray(mask.astype(np.uint8) * 255), file)
    if not_found:
        logger.warning("no car was found in %d pictures: %s", len(not_found), first_few(not_found))
