"""Medians, ratios and their uncertainty: what raw times may be said to show. Knows no engine and no file.

Intervals are 95 % bootstrap percentile intervals. Calls of one round share the state of the machine, so whole
rounds are resampled, not single calls. With one round there is nothing to resample: the interval is infinitely wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nopad.bench.schema import Cell

Interval = tuple[float, float, float]  # low, middle, high
Values = npt.NDArray[np.float64]
RESAMPLES = 4000
CONFIDENCE = 0.95
SEED = 20_240_229  # of the resampling, so that a report reads the same each time
WIDE = 0.10  # a ratio whose interval is wider than this share of it decides nothing


def percentile(values: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile (0..100), linear between neighbours."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))


def spread(values: Sequence[float]) -> float | None:
    """Interquartile range over median; None for fewer than 4 values, whose quartiles say nothing."""
    if len(values) < 4:
        return None
    return (percentile(values, 75) - percentile(values, 25)) / percentile(values, 50)


def round_medians(values: Sequence[float], rounds: Sequence[int] = ()) -> dict[int, float]:
    """The median of each round's times; without `rounds` every value is a round of its own."""
    groups: dict[int, list[float]] = {}
    for value, number in zip(values, rounds or range(len(values)), strict=True):
        groups.setdefault(number, []).append(value)
    return {number: float(np.median(group)) for number, group in groups.items()}


def resampled_medians(values: Values, seed: int = SEED) -> Values:
    """Medians of `RESAMPLES` samples drawn from `values` with replacement."""
    drawn = np.random.default_rng(seed).integers(0, len(values), size=(RESAMPLES, len(values)))
    return np.median(values[drawn], axis=1)


def interval_of(estimate: float, resampled: Values) -> Interval:
    """The estimate between the percentiles that hold `CONFIDENCE` of its resampled values."""
    outside = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [outside, 100 - outside])
    return float(low), estimate, float(high)


def median_interval(values: Sequence[float], rounds: Sequence[int] = ()) -> Interval:
    """Median (over the rounds' medians) of at least one value, between the ends of its interval."""
    medians = np.array(list(round_medians(values, rounds).values()))
    middle = float(np.median(medians))
    return (0.0, middle, math.inf) if len(medians) < 2 else interval_of(middle, resampled_medians(medians))


def ratio_interval(cell: Cell, reference: Cell) -> Interval | None:
    """How many times as fast as the reference a cell is: the median of the ratios within each round.

    None where the two share no round.
    """
    mine = round_medians(cell.seconds, cell.rounds)
    theirs = round_medians(reference.seconds, reference.rounds)
    ratios = np.array([theirs[number] / mine[number] for number in sorted(mine.keys() & theirs.keys())])
    if not len(ratios):
        return None
    middle = float(np.median(ratios))
    return (0.0, middle, math.inf) if len(ratios) < 2 else interval_of(middle, resampled_medians(ratios))


def unpaired_ratio(new: Sequence[float], old: Sequence[float]) -> Interval:
    """Median of `new` over median of `old`, which were measured independently (a value is a round's median)."""
    above, below = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    middle = float(np.median(above) / np.median(below))
    if len(above) < 2 or len(below) < 2:
        return 0.0, middle, math.inf
    return interval_of(middle, resampled_medians(above) / resampled_medians(below, SEED + 1))


def wide(interval: Interval) -> bool:
    """Whether an interval is too wide to conclude from."""
    low, middle, high = interval
    return not (high - low) <= WIDE * middle
