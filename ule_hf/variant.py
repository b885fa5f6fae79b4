"""A variant of ULE: the four choices (attribution, score, map, term) and how the student is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ule_hf.attribution import Grid, Norm, Score, Sign
from ule_hf.errors import UleError
from ule_hf.unlearning import Control, MapTerm

Attribution = Literal["gradient", "path"]
Term = Literal[MapTerm, "exchange"]
StudentLoss = Literal["cross_entropy", "generalised_cross_entropy"]


@dataclass(frozen=True)
class Variant:
    """What one step computes. See :mod:`ule_hf.attribution`, :mod:`ule_hf.unlearning` and :mod:`ule_hf.exchange`.

    Raises:
        UleError: a choice that is not known, or two that exclude one another.
    """

    attribution: Attribution = "gradient"
    score: Score = "predicted"
    grid: Grid | None = None
    map_sign: Sign = "abs"
    map_norm: Norm = "max"
    term: Term = "inverse"
    coverage: float = 0.7
    control: Control = "none"
    student_loss: StudentLoss = "cross_entropy"
    gce_q: float = 0.7

    def __post_init__(self) -> None:
        choices = {
            "attribution": Attribution,
            "score": Score,
            "map_sign": Sign,
            "map_norm": Norm,
            "term": Term,
            "control": Control,
            "student_loss": StudentLoss,
        }
        for name, values in choices.items():
            if getattr(self, name) not in get_args(values):
                raise UleError(
                    f"{name} {getattr(self, name)!r} is not known; choose one of {', '.join(get_args(values))}"
                )
        if self.score == "difference" and self.attribution != "path":
            raise UleError("score 'difference' needs a partner: use it with attribution 'path', or score 'predicted'")
        if self.map_sign == "signed" and self.term in ("mass", "kl"):
            raise UleError(f"term {self.term!r} needs maps without negative values: use map_sign 'abs' or 'relu'")
        if self.term == "exchange" and (self.attribution != "path" or self.grid is None or self.map_sign != "signed"):
            raise UleError("term 'exchange' needs attribution 'path', a grid such as 2x2, and map_sign 'signed'")
        if not 0 < self.coverage <= 1:
            raise UleError(f"coverage is {self.coverage}; it must lie in (0, 1]")
        if not 0 < self.gce_q <= 1:
            raise UleError(f"gce_q is {self.gce_q}; it must lie in (0, 1] (0.7 in Nam et al. 2020)")


# `paper` is our reading of arXiv 2409.02792; the others are ours. A preset also says how the two are
# scheduled.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "attribution": "gradient",
        "score": "predicted",
        "grid": "dense",
        "map_sign": "abs",
        "map_norm": "max",
        "term": "inverse",
        "student_loss": "cross_entropy",
        "unlearning_weight": 1.0,
        "unlearning_decay": False,
        "student_head_start": 0.0,
        "freeze_student": False,
    },
    "path": {
        "attribution": "path",
        "score": "difference",
        "grid": "4x4",
        "map_sign": "abs",
        "map_norm": "max",
        "term": "overlap",
        "student_loss": "generalised_cross_entropy",
        "unlearning_weight": 1.0,
        "unlearning_decay": False,
        "student_head_start": 2.0,
        "freeze_student": False,
    },
    "exchange": {
        "attribution": "path",
        "score": "difference",
        "grid": "2x2",
        "map_sign": "signed",
        "map_norm": "max",
        "term": "exchange",
        "student_loss": "cross_entropy",
        "unlearning_weight": 0.3,
        "unlearning_decay": True,
        "student_head_start": 2.0,
        "head_start_accuracy": 0.9,
        "freeze_student": True,
    },
}
PRESETS["auto"] = PRESETS["exchange"] | {"trial_accuracy": 0.55, "balance_errors": True}


def parse_grid(text: str) -> Grid | None:
    """``"2x1"`` -> (2, 1), rows by columns; ``"dense"`` -> None.

    >>> parse_grid("2x1"), parse_grid("dense")
    ((2, 1), None)
    """
    if text == "dense":
        return None
    rows, _, columns = text.partition("x")
    if rows.isdecimal() and columns.isdecimal() and int(rows) > 0 and int(columns) > 0:
        return int(rows), int(columns)
    raise UleError(f"grid {text!r} is not understood; write ROWSxCOLUMNS, such as 4x4 or 2x1, or dense")
