"""How far probabilities are from the truth: the reliability diagram, and the calibration error that it sums up.

The expected calibration error is M. P. Naeini et al.'s, "Obtaining Well Calibrated Probabilities Using Bayesian
Binning" (AAAI 2015). numpy only; no torch, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nopad.model.head import FloatArray, Head

BINS = 15  # of equal width, as in C. Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017)
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The answers whose probability lies in one bin; those of no answer are 0."""

    count: int
    probability: float  # their mean
    right: float  # the share that is true


def reliability(logits: FloatArray, targets: Values, head: Head) -> tuple[Bin, ...]:
    """The reliability diagram: `BINS` bins of equal width, from 0 to 1.

    Logits and true labels, zeros and ones, are [rows, num_labels]. With one label for each text, the answers are the
    chosen labels; with several, every label of every text.
    """
    p = head.probabilities(logits).astype(np.float64)
    if head.multi_label:
        probabilities, right = p.ravel(), targets.ravel()
    else:
        best = head.best(logits)
        probabilities, right = of_each_row(p, best), of_each_row(targets, best)
    place = np.clip(np.ceil(probabilities * BINS).astype(int) - 1, 0, BINS - 1)  # 1 belongs to the last
    counts, sums, hits = (np.bincount(place, weights, BINS) for weights in (None, probabilities, right))
    return tuple(
        Bin(count=int(count), probability=float(total / max(count, 1)), right=float(hit / max(count, 1)))
        for count, total, hit in zip(counts, sums, hits, strict=True)
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: |probability - right| of each bin, weighted by its count; 0 to 1."""
    return sum(one.count * abs(one.probability - one.right) for one in bins) / sum(one.count for one in bins)


def of_each_row(values: Values, index: npt.NDArray[np.int64]) -> Values:
    """One value of each row."""
    return np.asarray(np.take_along_axis(values, index[:, None], axis=1)[:, 0])
