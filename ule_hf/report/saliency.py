"""Where a trained classifier looks: its maps for given pictures, and the share of a map that lies on an object."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from ule_hf.attribution import Grid, attribution_map, check_grid, class_score, input_gradient, mix, path_attribution
from ule_hf.backbones import is_convolutional
from ule_hf.errors import UleError

MapKind = Literal["gradient", "path", "grad_cam"]
#: Points on each path. The midpoint rule's error falls with their square.
POINTS = 16
#: Pictures that are looked at together.
BATCH = 32


def saliency(
    classifier: nn.Module,
    pixel_values: Tensor,
    kind: MapKind,
    references: Tensor | None = None,
    grid: Grid | None = None,
) -> Tensor:
    """Absolute maps of what the predicted class hangs on, each divided by its largest value.

    ``gradient``: ∂ largest logit/∂ image (Simonyan et al. 2014), absolute values summed over the channels. ``path``:
    expected gradients of the predicted class's log-probability from the image to its references (Erion et al. 2021),
    summed over channels and cells before the sign is dropped. ``grad_cam``: Selvaraju et al. 2017 at the last
    convolution, by captum, resized bilinearly.

    Args:
        classifier: in evaluation mode; ``classifier(pixel_values=x).logits`` is ``[B, K]``.
        pixel_values: ``[B, C, H, W]``, normalised.
        references: ``[B, R, C, H, W]``, for ``path``: the other ends of the paths.
        grid: (rows, columns) of the map; None for one value a pixel.

    Returns:
        ``[B, rows, columns]`` or ``[B, H, W]``, in [0, 1]; zero everywhere where nothing has an influence.

    Raises:
        UleError: a kind that is not known, a path without references, a grid that does not fit, or Grad-CAM of a model
            without convolutions.
    """
    if kind not in get_args(MapKind):
        raise UleError(f"attribution {kind!r} is not known; choose one of {', '.join(get_args(MapKind))}")
    if kind == "path" and references is None:
        raise UleError("attribution 'path' needs references: the pictures at the other ends of the paths")
    height, width = pixel_values.shape[-2:]
    check_grid(grid, height, width)
    cells = grid or (height, width)
    ends = [None] * len(pixel_values) if references is None else references
    parts = [slice(i, i + BATCH) for i in range(0, len(pixel_values), BATCH)]
    attributions = (_attribution(classifier, pixel_values[part], kind, ends[part]) for part in parts)
    maps = [attribution_map(a.detach(), cells, sum_before_sign=kind == "path") for a in attributions]
    return torch.cat(maps).unflatten(1, cells)


def _attribution(classifier: nn.Module, pixel_values: Tensor, kind: MapKind, references: Tensor) -> Tensor:
    with torch.no_grad():
        predicted = classifier(pixel_values=pixel_values).logits.argmax(dim=1)
    if kind == "grad_cam":
        return _grad_cam(classifier, pixel_values, predicted)
    if kind == "path":
        return expected_gradients(classifier, pixel_values, predicted, references)
    images = pixel_values.clone().requires_grad_()
    return input_gradient(class_score(classifier(pixel_values=images).logits, predicted), images)


def expected_gradients(classifier: nn.Module, images: Tensor, predicted: Tensor, references: Tensor) -> Tensor:
    """``[B, C, H, W]``; a picture's sum is the mean of log p(reference) − log p(image) of the predicted class.

    Args:
        images: ``[B, C, H, W]``, normalised.
        predicted: ``[B]`` class ids.
        references: ``[B, R, C, H, W]``: the other ends of the paths.
    """
    size = len(images)
    total = torch.zeros_like(images)
    for ends in references.unbind(dim=1):
        both = torch.cat([images, ends])
        for number in range(POINTS):
            point = torch.full((2 * size,), (number + 0.5) / POINTS)
            # the first half of the batch goes from the images to their references, the other half back
            mixed, difference = (part[:size] for part in mix(both, torch.arange(2 * size).roll(size), point))
            mixed = mixed.detach().requires_grad_()
            score = class_score(classifier(pixel_values=mixed).logits, predicted, "log_prob")
            total += path_attribution(score, mixed, difference)
    return total / (POINTS * references.shape[1])


def _grad_cam(classifier: nn.Module, images: Tensor, predicted: Tensor) -> Tensor:
    from captum.attr import LayerAttribution, LayerGradCam

    cam = LayerGradCam(lambda x: classifier(pixel_values=x).logits, last_convolution(classifier, images[:1]))
    maps = cam.attribute(images, target=predicted, relu_attributions=True)
    return LayerAttribution.interpolate(maps, tuple(images.shape[-2:]), "bilinear")


def last_convolution(classifier: nn.Module, image: Tensor) -> nn.Conv2d:
    """The convolution that runs last of those whose output is larger than one pixel: Grad-CAM's layer.

    Args:
        image: ``[1, C, H, W]``.

    Raises:
        UleError: there is none beyond a patch embedding.
    """
    used: list[nn.Conv2d] = []

    def note(module: nn.Conv2d, _: object, output: Tensor) -> None:
        if output.shape[-2:].numel() > 1:
            used.append(module)

    hooks = [m.register_forward_hook(note) for m in classifier.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad():
            classifier(pixel_values=image)
    finally:
        for hook in hooks:
            hook.remove()
    if not used or not is_convolutional(classifier):
        raise UleError(f"Grad-CAM needs convolutions, {type(classifier).__name__} has none; use gradient or path")
    return used[-1]


def blurred(pixel_values: Tensor) -> Tensor:
    """Each picture with its details gone (Gaussian, σ a tenth of the shorter side): a reference for a lone picture.

    Args:
        pixel_values: ``[..., C, H, W]``.
    """
    sigma = min(pixel_values.shape[-2:]) / 10
    radius = min(round(3 * sigma), min(pixel_values.shape[-2:]) - 1)
    return gaussian_blur(pixel_values, [2 * radius + 1] * 2, [sigma] * 2)


def share_on_object(maps: Tensor, masks: Tensor) -> np.ndarray:
    """Σ map · mask / Σ map, `[B]`: 1 where all attribution lies on the object, NaN where the map is zero everywhere.

    The object's share of the picture (:func:`area`) is what a map that knows nothing has.

    Args:
        maps: ``[B, H, W]``, not negative.
        masks: ``[B, H, W]`` in [0, 1].

    >>> share_on_object(torch.tensor([[[3.0, 1.0]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]))
    array([0.75,  nan], dtype=float32)
    """
    total = maps.flatten(1).sum(dim=1)
    on_object = (maps * masks).flatten(1).sum(dim=1)
    return torch.where(total > 0, on_object / total, torch.nan).numpy()


def area(masks: Tensor) -> np.ndarray:
    """The object's share of each picture, `[B]`.

    >>> area(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]))
    array([0.25], dtype=float32)
    """
    return masks.flatten(1).mean(dim=1).numpy()
