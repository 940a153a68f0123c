"""What raw times may be said to show."""

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import cell, noisy

from nopad.bench.report.intervals import (
    median_interval,
    percentile,
    ratio_interval,
    round_medians,
    spread,
    unpaired_ratio,
    wide,
)

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=20)


@given(TIMES)
def test_the_median_lies_in_its_interval_and_the_interval_in_the_data(times: list[float]) -> None:
    low, middle, high = median_interval(times)
    assert middle == pytest.approx(statistics.median(times))
    assert min(times) <= low <= middle * (1 + 1e-12) and middle <= high * (1 + 1e-12) and high <= max(times)


@given(TIMES, st.floats(0, 100))
def test_percentiles_are_between_the_extremes(times: list[float], percent: float) -> None:
    assert min(times) * (1 - 1e-12) <= percentile(times, percent) <= max(times) * (1 + 1e-12)
    assert percentile(times, 50) == pytest.approx(statistics.median(times))


def test_one_round_decides_nothing() -> None:
    assert median_interval([2.0]) == (0.0, 2.0, math.inf)
    # Many calls of one round are still one look at the machine.
    assert median_interval([2.0, 2.1, 1.9], [0, 0, 0]) == (0.0, 2.0, math.inf)
    assert wide(median_interval([2.0]))


def test_calls_of_a_round_count_once() -> None:
    assert round_medians([1.0, 3.0, 2.0, 9.0], [0, 0, 0, 1]) == {0: 2.0, 1: 9.0}
    assert median_interval([1.0] * 10 + [2.0], [0] * 10 + [1])[1] == 1.5


def test_ratios_pair_within_a_round() -> None:
    # The machine slows down tenfold over the run; within each round the reference takes three times as long.
    slow = tuple(1.0 + number for number in range(10))
    interval = ratio_interval(cell("nopad-fp32", slow), cell("hf-sdpa", tuple(3 * second for second in slow)))
    assert interval == pytest.approx((3.0, 3.0, 3.0))


def test_ratios_use_only_shared_rounds() -> None:
    mine = cell("nopad-fp32", (1.0, 1.0), rounds=(4, 5))
    assert ratio_interval(mine, cell("hf-sdpa", (2.0, 5.0), rounds=(0, 4)))[1] == 5.0  # type: ignore[index]
    assert ratio_interval(mine, cell("hf-sdpa", (2.0,), rounds=(0,))) is None


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    choose, held = random.Random(5), 0
    for _ in range(200):
        times = [choose.lognormvariate(0, 0.1) for _ in range(15)]
        low, _, high = median_interval(times)
        held += low <= 1.0 <= high
    assert 180 <= held <= 198  # 95 % of 200 is 190


def test_intervals_are_the_same_each_time() -> None:
    times = noisy(1.0, 0.1, 3)
    assert median_interval(times) == median_interval(times)
    assert unpaired_ratio(times, times[:5]) == unpaired_ratio(times, times[:5])


def test_an_unpaired_ratio_of_equal_work_holds_one() -> None:
    low, middle, high = unpaired_ratio(noisy(1.0, 0.05, 1), noisy(1.0, 0.05, 2))
    assert low < 1.0 < high and middle == pytest.approx(1.0, abs=0.1)


def test_spread_is_that_of_the_middle_half() -> None:
    assert spread([1.0, 1.0, 1.0, 1.0, 50.0]) == 0.0
    assert spread([1.0, 2.0, 3.0]) is None
    assert spread(list(np.linspace(0.9, 1.1, 101))) == pytest.approx(0.1)
