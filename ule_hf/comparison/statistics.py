"""What a few seeds can say of a difference between two methods. NumPy and SciPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np
from scipy.stats import bootstrap

#: With fewer seeds in common there is no interval.
FEWEST_SEEDS = 3
#: Up to so many seeds all resamples are enumerated (6,435 different ones of eight); with more, 9,999 are drawn.
MOST_ENUMERATED = 8
LEVEL = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """One method minus another on the seeds that both have: each seed's difference, their mean, and its interval.

    ``interval`` is None with fewer than `FEWEST_SEEDS` seeds.
    """

    by_seed: dict[int, float]
    mean: float
    interval: tuple[float, float] | None


def paired_difference(method: Mapping[int, float], reference: Mapping[int, float]) -> PairedDifference | None:
    """``method`` minus ``reference`` seed by seed; None where they have no seed in common.

    Args:
        method, reference: seed -> figure. A seed fixes the data, the initial weights and the order of the batches of
            both, so that their difference varies less than either.

    >>> paired_difference({0: 3.0, 1: 5.0, 2: 9.0}, {2: 4.0, 1: 4.0, 0: 0.0})
    PairedDifference(by_seed={0: 3.0, 1: 1.0, 2: 5.0}, mean=3.0, interval=(1.0, 5.0))
    """
    by_seed = {seed: method[seed] - reference[seed] for seed in sorted(method.keys() & reference.keys())}
    if not by_seed:
        return None
    values = list(by_seed.values())
    interval = bootstrap_interval(values) if len(values) >= FEWEST_SEEDS else None
    return PairedDifference(by_seed, float(np.mean(values)), interval)


def bootstrap_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (Efron, 1979), whatever their order.

    Up to `MOST_ENUMERATED` values the resamples are not drawn but enumerated with their probabilities. Each end is
    the outermost resampled mean that leaves less than ``(1 − level) / 2`` outside.
    """
    values = sorted(values)  # sums do not depend on the seeds' order then
    count = len(values)
    if count > MOST_ENUMERATED:
        drawn = bootstrap((values,), np.mean, confidence_level=level, method="percentile", rng=0)
        return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
    chosen = np.array(list(combinations_with_replacement(range(count), count)))
    times = np.array([np.bincount(row, minlength=count) for row in chosen])
    ways = np.array([factorial(count) // prod(factorial(k) for k in row) for row in times.tolist()])
    means = np.array(values)[chosen].mean(axis=1)
    order = np.argsort(means, kind="stable")
    means, below = means[order], np.cumsum(ways[order]) / count**count
    above = np.cumsum(ways[order][::-1])[::-1] / count**count
    tail = (1 - level) / 2
    return float(means[np.argmax(below >= tail)]), float(means[np.flatnonzero(above >= tail)[-1]])


def most_coverage(count: int) -> float:
    """What a percentile bootstrap interval of ``count`` values can cover at most, whatever its nominal level.

    It never reaches beyond the smallest and the largest value, and the median of the differences lies outside of
    these with probability ``2 · 0.5^count``; so too their mean, where the distribution is symmetric.

    >>> most_coverage(3), most_coverage(5)
    (0.75, 0.9375)
    """
    return 1 - 2 * 0.5**count


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, in per cent; without spread where there is one value, a dash where none.

    >>> mean_and_spread([0.5, 0.7]), mean_and_spread([0.5]), mean_and_spread([])
    ('60.0 ± 14.1', '50.0', '–')
    """
    if not values:
        return "–"
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"
