"""What a number of rows can show: shares and figures with their 95 % intervals, and McNemar's test. numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
RESAMPLES = 1000
SEED = 1911_00068  # of the resampling, so that a page reads the same each time
_Z = 1.959963984540054  # of a normal distribution's middle 95 %


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: int, rows: int) -> Estimate:
    """A share of rows with its score interval, which stays within 0 and 1 (E. B. Wilson, JASA 1927)."""
    share, z2 = hits / rows, _Z * _Z
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _Z * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows)) / (1 + z2 / rows)
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    return Estimate(
        value=share,
        low=0.0 if hits == 0 else max(0.0, middle - half),
        high=1.0 if hits == rows else min(1.0, middle + half),
    )


def bootstrap(figure: Callable[[Values], float], rows: int) -> Estimate:
    """A figure of rows with its percentile interval: `figure` gets how often each row counts, float64 [rows].

    It is asked once with ones, then with the counts of `RESAMPLES` samples that are drawn with replacement; NaN, of a
    sample that has no such figure, is left out.
    """
    draw = np.random.default_rng(SEED)
    value = figure(np.ones(rows))
    drawn = [
        figure(np.bincount(draw.integers(0, rows, rows), minlength=rows).astype(np.float64)) for _ in range(RESAMPLES)
    ]
    known = [one for one in drawn if math.isfinite(one)] or [value]
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(value=float(value), low=float(low), high=float(high))


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p of McNemar's exact test: rows that only one of two got right, as tosses of a fair coin.

    Q. McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions" (Psychometrika 1947), with
    the binomial distribution itself instead of its approximation.
    """
    tosses, fewer = only_first + only_second, min(only_first, only_second)
    term = total = 1  # whole numbers: exact for any count
    for drawn in range(1, fewer + 1):
        term = term * (tosses - drawn + 1) // drawn
        total += term
    return min(1.0, 2 * total / 2**tosses) if tosses else 1.0
