"""Intervals and McNemar's test, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nopad.analysis.intervals import bootstrap, mcnemar, wilson


@given(st.integers(1, 5000), st.data())
def test_the_interval_of_a_share_is_wilsons(rows: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, rows))
    ours, theirs = wilson(hits, rows), scipy.stats.binomtest(hits, rows).proportion_ci(method="wilson")
    assert ours.value == hits / rows
    assert ours.low == pytest.approx(theirs.low, abs=1e-12) and ours.high == pytest.approx(theirs.high, abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_mcnemars_test_is_that_of_a_fair_coin(first: int, second: int) -> None:
    wanted = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(wanted, rel=1e-9, abs=1e-250)  # where theirs is 0


def test_very_many_rows_still_have_a_p() -> None:
    assert mcnemar(20_000, 19_000) == pytest.approx(scipy.stats.binomtest(20_000, 39_000).pvalue, rel=1e-6)


def test_a_mean_is_bootstrapped_about_as_its_standard_error_says() -> None:
    values = np.random.default_rng(7).normal(3.0, 2.0, 500)
    found = bootstrap(lambda counts: float(counts @ values / counts.sum()), len(values))
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.1)
    assert found == bootstrap(lambda counts: float(counts @ values / counts.sum()), len(values))


def test_samples_without_the_figure_are_left_out() -> None:
    def only_with_the_first_row(counts: np.ndarray) -> float:
        return 5.0 if counts[0] else float("nan")

    found = bootstrap(only_with_the_first_row, 3)
    assert (found.low, found.value, found.high) == (5.0, 5.0, 5.0)
