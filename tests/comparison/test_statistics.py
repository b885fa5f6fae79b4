"""Intervals and differences against values worked out by hand, and what must hold for any seeds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ule_hf.comparison.statistics import bootstrap_interval, mean_and_spread, most_coverage, paired_difference

accuracies = st.floats(0, 1, width=32)


def test_three_seeds_by_hand():
    # 27 resamples: each constant one has probability 1/27 = 3.7 %, more than the 2.5 % of a tail
    assert bootstrap_interval([0.1, 0.2, 0.6]) == pytest.approx((0.1, 0.6))
    # at 80 % a tail is 10 %: P(mean <= 2/15) = 1/27 + 3/27, and P(mean >= 7/15) = 1/27 + 3/27
    assert bootstrap_interval([0.1, 0.2, 0.6], level=0.8) == pytest.approx((0.4 / 3, 1.4 / 3))


def test_differences_are_of_the_seeds_that_both_have():
    difference = paired_difference({0: 0.9, 1: 0.8, 7: 0.1}, {1: 0.5, 0: 0.5, 2: 1.0})
    assert difference.by_seed == pytest.approx({0: 0.4, 1: 0.3}) and difference.mean == pytest.approx(0.35)
    assert difference.interval is None  # two seeds say too little
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_pairing_takes_out_what_the_seeds_share():
    hard, easy = {0: 0.1, 1: 0.5, 2: 0.9}, {0: 0.2, 1: 0.6, 2: 1.0}
    assert paired_difference(easy, hard).interval == pytest.approx((0.1, 0.1))


@given(st.lists(accuracies, min_size=3, max_size=5))
def test_enumeration_is_that_of_all_resamples(values):
    means = np.sort([np.mean(sample) for sample in product(values, repeat=len(values))])
    allowed = int(np.ceil(0.025 * len(means) - 1e-9))
    assert bootstrap_interval(values) == pytest.approx((means[allowed - 1], means[len(means) - allowed]))


@given(st.dictionaries(st.integers(0, 99), st.tuples(accuracies, accuracies), min_size=3, max_size=12), st.randoms())
def test_order_of_seeds_mean_inside_and_sign(pairs, random):
    method, reference = ({seed: pair[i] for seed, pair in pairs.items()} for i in range(2))
    shuffled = dict(random.sample(sorted(method.items()), len(method)))
    difference = paired_difference(method, reference)
    assert paired_difference(shuffled, reference) == difference
    low, high = difference.interval
    assert low - 1e-9 <= difference.mean <= high + 1e-9
    assert min(difference.by_seed.values()) - 1e-9 <= low and high <= max(difference.by_seed.values()) + 1e-9
    if len(pairs) <= 8:
        reverse = paired_difference(reference, method)
        assert reverse.interval == pytest.approx((-high, -low)) and reverse.mean == pytest.approx(-difference.mean)


def test_coverage_with_few_seeds_is_no_more_than_said():
    differences = np.random.default_rng(0).normal(size=(2000, 3))
    covered = [low <= 0 <= high for low, high in map(bootstrap_interval, differences)]
    assert np.mean(covered) == pytest.approx(most_coverage(3), abs=0.03)


def test_mean_and_spread():
    assert mean_and_spread([0.1, 0.2, 0.6]) == "30.0 ± 26.5"
