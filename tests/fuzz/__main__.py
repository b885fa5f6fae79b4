"""Feeds the loaders with folders of every kind, good and bad: ``python -m tests.fuzz --cases 500 --seed 1``.

Prints how many were loaded, and how many refused, of each loader. A case that ends in anything else stops it, shrunk to
the least that shows the fault.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections import Counter

import datasets
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.check import CASES, check


def fuzz(loader: str, cases: int, first: int) -> Counter[str]:
    """How the cases ended; every one that hypothesis draws counts once."""
    outcomes: Counter[str] = Counter()
    phases = [Phase.generate, Phase.shrink]

    @seed(first)
    @settings(max_examples=cases, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def case(data):
        outcomes[check(loader, data.draw)] += 1

    case()
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500, help="Of each loader.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loaders", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", UserWarning)  # of Pillow
    for loader in args.loaders:
        start = time.perf_counter()
        outcomes = fuzz(loader, args.cases, args.seed)
        counts = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
        print(f"{loader}: {outcomes.total()} cases, {counts}, anything else 0 ({time.perf_counter() - start:.0f} s)")
