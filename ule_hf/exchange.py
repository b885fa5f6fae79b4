"""Exchanging what the student leans on: pictures whose shortcut says one class while the rest still says another.

The student's path attribution tells which cells of a picture carry its decision. Those cells are taken from a picture
of another class, and the teacher is asked for the label all the same: CE(t(x̃), y). Where the student knows only the
shortcut, x̃ is the counterexample that the training data lacks. Cutting and pasting rectangles is CutMix (Yun et al.
2019), recombining pictures by a model's attributions Decompose-and-Compose (Noohdani et al. 2024), hiding what a
model looks at MaskTune (Asgari et al. 2022); choosing the cells by a student biased on purpose is ours. Torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ule_hf.attribution import Grid, cell_of
from ule_hf.unlearning import Control


def decisive_cells(contributions: Tensor, coverage: float = 0.7) -> Tensor:
    """The fewest cells whose contributions make up ``coverage`` of all positive ones, though never every cell.

    Args:
        contributions: ``[B, N]``, signed: how far the exchange of each cell moves the student's score from the class
            of the image to the class of its partner (:func:`ule_hf.attribution.path_attribution`, summed over cells;
            by completeness they add up to the whole change).
        coverage: in (0, 1].

    Returns:
        ``[B, N]`` of bool; nowhere true where no contribution is positive.

    >>> decisive_cells(torch.tensor([[5.0, -1.0, 4.0, 1.0], [0.0, 0.0, -2.0, 0.0]]), coverage=0.7)
    tensor([[ True, False,  True, False],
            [False, False, False, False]])
    """
    positive, cells = contributions.clamp_min(0).sort(dim=1, descending=True, stable=True)
    covered_before = positive.cumsum(dim=1) - positive
    taken = (covered_before < coverage * positive.sum(dim=1, keepdim=True)) & (positive > 0)
    taken[:, -1] = False  # a picture whose every cell is exchanged is its partner
    return torch.zeros_like(taken).scatter(1, cells, taken)


def control_cells(cells: Tensor, control: Control, generator: torch.Generator | None = None) -> Tensor:
    """What stands in the place of the student's cells, ``[B, N]``, to see whether the student teaches.

    ``constant``: as many cells, at places drawn at random with ``generator`` (a CPU generator). ``shuffled``: those of
    the next sample of the batch.

    >>> control_cells(torch.tensor([[True, False], [False, False]]), "shuffled")
    tensor([[False, False],
            [ True, False]])
    """
    if control == "shuffled":
        return cells.roll(1, dims=0)
    if control == "constant":
        places = torch.rand(cells.shape, generator=generator).argsort(dim=1)
        return cells.gather(1, places.to(cells.device))
    return cells


def exchange(images: Tensor, partners: Tensor, cells: Tensor, grid: Grid) -> Tensor:
    """Each image with the marked cells of its partner.

    Args:
        images: ``[B, C, H, W]``.
        partners: ``[B]`` indices into ``images``.
        cells: ``[M, rows·columns]`` of bool with M ≤ B, for the first M images.
        grid: (rows, columns), cut as :func:`ule_hf.attribution.sum_over_grid` cuts.

    Returns:
        ``[M, C, H, W]``.

    >>> images = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(2, 1, 1, 2)
    >>> exchange(images, torch.tensor([1, 0]), torch.tensor([[True, False], [False, True]]), (1, 2)).flatten(1)
    tensor([[3., 2.],
            [3., 2.]])
    """
    height, width = images.shape[-2:]
    rows, columns = (cell_of(size, n).to(cells.device) for size, n in zip((height, width), grid, strict=True))
    marked = cells.unflatten(1, grid)[:, rows][:, :, columns]
    return torch.where(marked[:, None], images[partners[: len(cells)]], images[: len(cells)])
