"""AFR: automatic feature reweighting.

A model is trained plainly on most of the training split. On the rest its last layer alone is trained on Σ_i μ_i
ℓ(w·z_i + b, y_i) + λ (‖w − ŵ‖² + ‖b − b̂‖²), z the frozen features, ŵ and b̂ the first model's layer, and μ_i ∝
exp(−γ p̂_i) / n_{y_i} with Σ_i μ_i = 1, p̂_i the first model's probability of the right class and n_y the images of
class y in the rest (Qiu, Potapczynski, Izmailov, Wilson, *Simple and fast group robustness by automatic feature
reweighting*, ICML 2023). The problem is convex and solved by L-BFGS, where the authors take gradient steps.

Labels: the class. The paper chooses γ and λ by the worst *group* of validation.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor

from ule_hf.baselines.last_layer import head_inputs, linear_head, ship
from ule_hf.classifier_trainer import ClassifierTrainer, column
from ule_hf.errors import UleError
from ule_hf.seeds import named_seed
from ule_hf.task import Task


def weights_of(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """μ, ``[N]``, from the first model's logits ``[N, K]``.

    >>> weights_of(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1, 1]), gamma=4.0)
    tensor([0.5000, 0.2500, 0.2500])
    """
    right = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    weights = torch.exp(-gamma * right) / labels.bincount()[labels]
    return weights / weights.sum()


def reweighted_head(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, gamma: float, penalty: float
) -> tuple[Tensor, Tensor]:
    """The last layer's ``weight`` ``[K, D]`` and ``bias`` ``[K]``, trained on features ``[N, D]``. In float64."""
    features, weight, bias = features.double(), weight.double(), bias.double()
    weights = weights_of(features @ weight.T + bias, labels, gamma)
    new = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    optimizer = torch.optim.LBFGS(new, max_iter=1000, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(features @ new[0].T + new[1], labels, reduction="none")
        loss = weights @ losses + penalty * ((new[0] - weight).square().sum() + (new[1] - bias).square().sum())
        loss.backward()
        return loss

    optimizer.step(objective)
    return new[0].detach(), new[1].detach()


def split(labels: NDArray, held_out: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train the first model on, and those held out, every class shared out alike.

    Raises:
        UleError: a class with fewer than two images, or too few held out for every class to be there.
    """
    try:
        rows = train_test_split(
            np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=named_seed(seed, "afr") % 2**32
        )
    except ValueError as error:
        raise UleError(f"--afr_held_out {held_out}: the training split cannot be divided so: {error}") from error
    return tuple(np.sort(part) for part in rows)


def train(task: Task) -> ClassifierTrainer:
    """Train plainly on a part of the training split, in ``first_stage/``, then the last layer on the rest."""
    linear_head(task.classifier())  # refused before anything is trained
    options, train_split = task.method_args, task.data["train"]
    for_first, held_out = split(column(train_split, "label"), options.afr_held_out, task.args.seed)
    first = task.first_stage(train_split.select(for_first))
    rest = train_split.select(held_out)
    features = torch.from_numpy(head_inputs(first, task.for_evaluation(rest)))
    head = linear_head(first.model)
    new = reweighted_head(
        features,
        torch.from_numpy(column(rest, "label")),
        head.weight.detach().cpu(),
        head.bias.detach().cpu(),
        options.afr_gamma,
        options.afr_penalty,
    )
    return ship(task, first, *new)
