"""From a classifier's output to a map of what it relies on: scores, input gradients, path gradients, maps.

Pure functions over tensors, each usable in a training loop of your own. Images are ``[B, C, H, W]``, logits
``[B, K]``, maps ``[B, N]`` with ``N = C·H·W`` (dense) or ``N = rows·columns`` (grid).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ule_hf.errors import UleError

Score = Literal["predicted", "label", "log_prob", "difference"]
Sign = Literal["abs", "relu", "signed"]
Norm = Literal["max", "sum", "l2", "rank"]
Grid = tuple[int, int]


def class_score(
    logits: Tensor, labels: Tensor, kind: Score = "predicted", partner_labels: Tensor | None = None
) -> Tensor:
    """One scalar per sample, the one whose gradient with respect to the input is the attribution.

    ``predicted``: the largest logit. ``label``: the logit of the sample's class y. ``log_prob``: log softmax of y.
    ``difference``: the logit of the partner's class minus the logit of y (path attributions; Erion et al. 2021
    differentiate the output, we the contrast between the two ends of the path).

    Args:
        logits: ``[B, K]``; half precision is raised to float32 first.
        labels: ``[B]`` class ids.
        partner_labels: ``[B]`` class ids at the other end of the path, for ``difference`` only.

    Returns:
        ``[B]``.

    >>> class_score(torch.tensor([[1.0, 4.0], [0.0, -2.0]]), torch.tensor([0, 0]), "predicted")
    tensor([4., 0.])
    >>> class_score(torch.tensor([[1.0, 4.0]]), torch.tensor([0]), "difference", torch.tensor([1]))
    tensor([3.])
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if kind == "predicted":
        return logits.max(dim=1).values
    if kind == "log_prob":
        logits = logits.log_softmax(dim=1)
    of_label = logits.gather(1, labels[:, None]).squeeze(1)
    if kind in ("label", "log_prob"):
        return of_label
    if kind != "difference":
        raise UleError(f"score {kind!r} is not known; choose one of {', '.join(get_args(Score))}")
    if partner_labels is None:
        raise UleError("score 'difference' needs partner_labels; use it with the attribution 'path'")
    return logits.gather(1, partner_labels[:, None]).squeeze(1) - of_label


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """log p_y − log(1 − p_y), ``[B]``: how far the label's logit ``[B, K]`` is above all the others together.

    >>> log_odds(torch.tensor([[4.0, 1.0], [4.0, 1.0]]), torch.tensor([0, 1]))
    tensor([ 3., -3.])
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None]).squeeze(1) - others.logsumexp(dim=1)


def input_gradient(
    score: Tensor, inputs: Tensor, create_graph: bool = False, retain_graph: bool | None = None
) -> Tensor:
    """∂ score / ∂ inputs for every sample at once (Simonyan et al. 2014; what the ULE paper differentiates).

    The scores are summed before they are differentiated. Where samples do not influence one another this is each
    sample's own gradient; BatchNorm in training mode couples them through the batch statistics, which we accept.

    Args:
        score: ``[B]``, computed from ``inputs``.
        inputs: ``[B, C, H, W]`` with ``requires_grad``.
        create_graph: True to be able to differentiate the result again (the teacher).
        retain_graph: True where the graph of ``score`` is needed once more; by default as ``create_graph``.

    Returns:
        ``[B, C, H, W]``, in units of score per unit of (normalised) pixel value.

    >>> x = torch.ones(1, 1, 2, 2, requires_grad=True)
    >>> input_gradient((x**2).flatten(1).sum(1), x)
    tensor([[[[2., 2.],
              [2., 2.]]]])
    """
    return torch.autograd.grad(score.sum(), inputs, create_graph=create_graph, retain_graph=retain_graph)[0]


def draw_path(labels: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor] | None:
    """For every sample a partner of another class and a point on the way to it.

    Args:
        labels: ``[B]`` class ids, of any number of classes.
        generator: a CPU generator; the draws are the same whatever device trains.

    Returns:
        ``(partners [B] indices into the batch, points [B] ~ U(0, 1))`` on the device of ``labels``, or None where
        the batch has one class only and so no path.

    >>> partners, points = draw_path(torch.tensor([0, 1, 0]), torch.Generator().manual_seed(0))
    >>> partners[0].item(), partners[2].item()
    (1, 1)
    >>> draw_path(torch.tensor([1, 1])) is None
    True
    """
    on_cpu = labels.cpu()
    other_class = on_cpu[:, None] != on_cpu[None, :]
    if not other_class.any():
        return None
    partners = torch.multinomial(other_class.float(), num_samples=1, generator=generator).squeeze(1)
    points = torch.rand(len(labels), generator=generator)
    return partners.to(labels.device), points.to(labels.device)


def mix(images: Tensor, partners: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The point z = x + a (x_p − x) on the straight path from each image to its partner, and x_p − x.

    Args:
        images: ``[B, C, H, W]``.
        partners: ``[B]`` indices into the batch.
        points: ``[B]``, a in [0, 1].

    Returns:
        ``(z, x_p − x)``, both ``[B, C, H, W]``.

    >>> images = torch.tensor([0.0, 10.0]).view(2, 1, 1, 1)
    >>> z, difference = mix(images, torch.tensor([1, 0]), torch.tensor([0.25, 0.5]))
    >>> z.flatten().tolist(), difference.flatten().tolist()
    ([2.5, 5.0], [10.0, -10.0])
    """
    difference = images[partners] - images
    return images + points.to(images.dtype)[:, None, None, None] * difference, difference


def path_attribution(
    score: Tensor,
    mixed: Tensor,
    difference: Tensor,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Tensor:
    """A = (x_p − x) ⊙ ∂ score/∂z, a one-sample estimate of expected gradients (Erion et al. 2021).

    Summed over the picture and averaged over the points of the path, A equals the change of the score from x to
    x_p (completeness of integrated gradients, Sundararajan et al. 2017). So a model that decides by a region has to
    show it somewhere on the path; a flat gradient at the training images does not hide it.

    Args:
        score: ``[B]``, computed from ``mixed``.
        mixed: ``[B, C, H, W]`` with ``requires_grad``, from :func:`mix`.
        difference: ``[B, C, H, W]``, from :func:`mix`.

    Returns:
        ``[B, C, H, W]``, in units of the score.

    >>> z, difference = mix(torch.tensor([0.0, 10.0]).view(2, 1, 1, 1), torch.tensor([1, 0]), torch.rand(2))
    >>> path_attribution(3 * z.requires_grad_().flatten(1).sum(1), z, difference).flatten().tolist()
    [30.0, -30.0]
    """
    return difference * input_gradient(score, mixed, create_graph, retain_graph)


def sum_over_grid(attribution: Tensor, grid: Grid) -> Tensor:
    """Signed sum over the channels and over each cell of a grid of ``rows × columns``.

    The cells partition the picture (they differ by a pixel where the size does not divide), so that the sum over
    all cells is the sum over the picture.

    Args:
        attribution: ``[B, C, H, W]``.
        grid: (rows, columns), at most (H, W).

    Returns:
        ``[B, rows·columns]``.

    >>> sum_over_grid(torch.arange(8.0).view(1, 1, 4, 2), (2, 1))
    tensor([[ 6., 22.]])
    """
    height, width = attribution.shape[-2:]
    check_grid(grid, height, width)
    rows, columns = grid
    in_row = _membership(height, rows, attribution)
    in_column = _membership(width, columns, attribution)
    return torch.einsum("bhw,rh,cw->brc", attribution.sum(dim=1), in_row, in_column).flatten(1)


def check_grid(grid: Grid | None, height: int, width: int) -> None:
    """Raises a UleError where pictures of ``height × width`` pixels have no ``rows × columns`` cells."""
    if grid is not None and not (1 <= grid[0] <= height and 1 <= grid[1] <= width):
        raise UleError(f"grid {grid[0]}x{grid[1]} does not fit pictures of {height}x{width} pixels; choose fewer cells")


def cell_of(size: int, cells: int) -> Tensor:
    """``[size]``: which of ``cells`` parts, equal but for a pixel, each position of a row or column lies in.

    >>> cell_of(5, 2)
    tensor([0, 0, 0, 1, 1])
    """
    return torch.arange(size) * cells // size


def _membership(size: int, cells: int, like: Tensor) -> Tensor:
    """[cells, size] of 0 and 1."""
    return (cell_of(size, cells) == torch.arange(cells)[:, None]).to(like)


def apply_sign(attribution: Tensor, sign: Sign) -> Tensor:
    """``abs``: how much, whichever way. ``relu``: evidence for the score only. ``signed``: as it is. Any shape.

    >>> apply_sign(torch.tensor([-2.0, 3.0]), "relu")
    tensor([0., 3.])
    """
    if sign == "abs":
        return attribution.abs()
    if sign == "relu":
        return attribution.relu()
    if sign == "signed":
        return attribution
    raise UleError(f"map_sign {sign!r} is not known; choose one of {', '.join(get_args(Sign))}")


def normalise(maps: Tensor, norm: Norm) -> Tensor:
    """Each map divided by its largest absolute value, its absolute sum or its l2 norm, or replaced by its ranks.

    A map that is zero everywhere (a dead score) stays zero and passes no gradient: it is not divided by. One that is
    not finite does not become finite.
    ``rank`` maps the values to equal steps from 0 to 1 and is constant almost everywhere, so it passes no gradient:
    it is for the student's map.

    Args:
        maps: ``[B, N]``.

    Returns:
        ``[B, N]``.

    >>> normalise(torch.tensor([[1.0, 4.0], [0.0, 0.0]]), "max")
    tensor([[0.2500, 1.0000],
            [0.0000, 0.0000]])
    >>> normalise(torch.tensor([[5.0, 1.0, 3.0]]), "rank")
    tensor([[1.0000, 0.0000, 0.5000]])
    """
    if norm == "rank":
        return maps.argsort(dim=1).argsort(dim=1).to(maps.dtype) / max(maps.shape[1] - 1, 1) + 0 * maps
    if norm == "max":
        scale = maps.abs().amax(dim=1, keepdim=True)
    elif norm == "sum":
        scale = maps.abs().sum(dim=1, keepdim=True)
    elif norm == "l2":
        # the norm of a zero vector has no gradient: take the root only where there is something
        square = maps.square().sum(dim=1, keepdim=True)
        scale = torch.where(square == 0, 1.0, square).sqrt() * (square != 0)
    else:
        raise UleError(f"map_norm {norm!r} is not known; choose one of {', '.join(get_args(Norm))}")
    alive = ~(scale <= torch.finfo(maps.dtype).eps ** 2)
    return torch.where(alive, maps, 0.0) / torch.where(alive, scale, 1.0)


def attribution_map(
    attribution: Tensor,
    grid: Grid | None = None,
    sign: Sign = "abs",
    norm: Norm = "max",
    sum_before_sign: bool = False,
) -> Tensor:
    """From attribution to map: dense or on a grid, with a sign rule, normalised per sample.

    On a grid, gradients lose their sign first (neighbouring pixels would cancel), path attributions are summed first
    (``sum_before_sign``), because only their signed sum is complete.

    Args:
        attribution: ``[B, C, H, W]``.
        grid: (rows, columns), or None for a dense map.

    Returns:
        ``[B, rows·columns]`` or ``[B, C·H·W]``.

    >>> attribution = torch.tensor([[[[1.0, -1.0], [0.0, 4.0]]]])
    >>> attribution_map(attribution, grid=(2, 1))
    tensor([[0.5000, 1.0000]])
    >>> attribution_map(attribution, grid=(2, 1), sum_before_sign=True)
    tensor([[0., 1.]])
    """
    if grid is None:
        maps = apply_sign(attribution, sign).flatten(1)
    elif sum_before_sign:
        maps = apply_sign(sum_over_grid(attribution, grid), sign)
    else:
        maps = sum_over_grid(apply_sign(attribution, sign), grid)
    return normalise(maps, norm)
