"""Numbers against the truth: how far answers are off, and whether they have the truth's order. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nopad.analysis.intervals import Estimate, Values, bootstrap


@dataclass(frozen=True, kw_only=True)
class NumberFigures:
    """How far a regression is off; over several numbers of a text, the mean. Correlations need variation."""

    absolute: Estimate  # mean absolute error
    squared: float  # root of the mean squared error
    bias: float  # mean of answer less truth
    spearman: Estimate | None
    pearson: float | None


def number_figures(answers: Values, truth: Values) -> NumberFigures:
    """Both are [rows, numbers]."""
    off = answers - truth
    varied = len(truth) > 2 and (np.ptp(answers, axis=0) > 0).all() and (np.ptp(truth, axis=0) > 0).all()
    spearman = pearson = None
    if varied:
        pearson = _correlation(answers, truth, np.ones(len(truth)))
        # Ranks are those of all rows: a sample that is drawn from them keeps their order.
        ranks = ranked(answers), ranked(truth)
        spearman = bootstrap(lambda counts: _correlation(*ranks, counts), len(truth))
    return NumberFigures(
        absolute=mean_error(off),
        squared=float(np.sqrt((off**2).mean())),
        bias=float(off.mean()),
        spearman=spearman,
        pearson=pearson,
    )


def mean_error(off: Values) -> Estimate:
    """The mean absolute error of [rows, numbers] differences."""
    each = np.abs(off).mean(axis=1)
    return bootstrap(lambda counts: float(counts @ each / counts.sum()), len(each))


def ranked(values: Values) -> Values:
    """The ranks of each column's values, from 0; equal values share the mean of theirs."""
    out = np.empty_like(values)
    for column in range(values.shape[1]):
        _, place, counts = np.unique(values[:, column], return_inverse=True, return_counts=True)
        out[:, column] = (counts.cumsum() - (counts + 1) / 2)[place]
    return out


def _correlation(a: Values, b: Values, counts: Values) -> float:
    """The mean of the columns' Pearson correlations, rows weighted by `counts`; NaN without variation."""
    weights = (counts / counts.sum())[:, None]
    a, b = a - (weights * a).sum(axis=0), b - (weights * b).sum(axis=0)
    below = np.sqrt((weights * a * a).sum(axis=0) * (weights * b * b).sum(axis=0))
    return float(((weights * a * b).sum(axis=0) / below).mean()) if (below > 0).all() else float("nan")
