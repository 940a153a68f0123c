"""Drift: how far the answers of now are from those that a bundle was calibrated on. numpy only; no files, no server.

Three distributions are kept as counts in fixed bins, so that two of them can be compared without the texts: labels,
confidence and length. The measure is the population stability index (N. Siddiqi, "Credit Risk Scorecards", 2006), the
symmetric divergence of H. Jeffreys (1946) between the two sets of shares.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nopad.model.head import FloatArray, Head
from nopad.runtime.types import Prediction

Of = Literal["labels", "confidence", "length"]
CONFIDENCE_BINS = 20  # of equal width from 0 to 1; each holds its upper end, as in a reliability diagram
LENGTH_ENDS = tuple(
    2**k for k in range(1, 15)
)  # tokens of the whole text, ends included; one more bin for what is longer
LEAST_SHARE = 1e-4  # what an empty bin counts as, so that it does not make the index infinite
LEAST_ANSWERS = 500  # fewer say nothing: see `noise`

Counts = npt.NDArray[np.int64]
Place = tuple[tuple[int, ...], int, int]  # the bins of one answer: labels, confidence, length


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Counts of answers to texts. `labels`: of each label in the manifest's order, and last of texts without one."""

    labels: Counts  # int64 [labels + 1]
    confidence: Counts  # int64 [CONFIDENCE_BINS]
    length: Counts  # int64 [len(LENGTH_ENDS) + 1]

    def to_json(self) -> dict[str, list[int]]:
        """As the manifest keeps it."""
        return {"labels": self.labels.tolist(), "confidence": self.confidence.tolist(), "length": self.length.tolist()}


def psi(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """The population stability index of two histograms over the same bins: the sum of (a - e) ln(a / e) over shares.

    0 for equal shares, the same in both directions, never negative. Shares below `LEAST_SHARE` count as that much.
    By Siddiqi's rule of thumb below 0.1 nothing has changed, and above 0.25 much has. Raises `ValueError` for
    histograms of nothing, or of different bins.
    """
    e, a = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if e.shape != a.shape or not e.sum() or not a.sum():
        raise ValueError(f"the histograms have {e.shape} and {a.shape} bins, or count nothing")
    e, a = np.maximum(e / e.sum(), LEAST_SHARE), np.maximum(a / a.sum(), LEAST_SHARE)
    return float(((a - e) * np.log(a / e)).sum())


def noise(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """The index to expect of two samples of one distribution: (bins - 1) (1/n + 1/m), of the bins that are used.

    B. Yurdakul, "Statistical Properties of Population Stability Index" (Western Michigan University, 2018).
    """
    e, a = np.asarray(expected), np.asarray(actual)
    bins = int(((e > 0) | (a > 0)).sum())
    return float(max(bins - 1, 0) * (1 / e.sum() + 1 / a.sum()))


def baseline(logits: FloatArray, lengths: Sequence[int], head: Head) -> Answers:
    """What `head` answers to texts: `logits` [rows, num_labels], `lengths` in tokens of the whole texts."""
    decided, p = head.decide(logits).astype(np.int64), head.probabilities(logits)
    best = logits.argmax(axis=1) if head.multi_label else head.best(logits)
    counted = _empty(len(head.labels))
    counted.labels[:-1] = decided.sum(axis=0)
    counted.labels[-1] = (decided.sum(axis=1) == 0).sum()
    for score, tokens in zip(np.take_along_axis(p, best[:, None], axis=1)[:, 0], lengths, strict=True):
        counted.confidence[confidence_bin(float(score))] += 1
        counted.length[length_bin(tokens)] += 1
    return counted


def place(prediction: Prediction, index: Mapping[str, int]) -> Place:
    """The bins of one answer: its labels (of none: the last), its confidence, its length. `index`: label -> place."""
    labels = tuple(index[label] for label in prediction.labels) or (len(index),)
    return labels, confidence_bin(prediction.score), length_bin(prediction.tokens)


def confidence_bin(score: float) -> int:
    """The bin of a score from 0 to 1."""
    return min(max(-int(-score * CONFIDENCE_BINS // 1) - 1, 0), CONFIDENCE_BINS - 1)


def length_bin(tokens: int) -> int:
    """The bin of a length of at least one token."""
    return min(max((tokens - 1).bit_length() - 1, 0), len(LENGTH_ENDS))


def baseline_from_json(raw: Mapping[str, Any] | None, labels: int) -> Answers | None:
    """The baseline of a manifest; None without one, or with one that has other bins or counts nothing."""
    try:
        found = {name: np.asarray((raw or {})[name], np.int64) for name in ("labels", "confidence", "length")}
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    answers, fits = Answers(**found), _empty(labels)
    for of in ("labels", "confidence", "length"):
        counts: Counts = getattr(answers, of)
        if counts.shape != getattr(fits, of).shape or (counts < 0).any() or not counts.sum():
            return None
    return answers


class Window:
    """The last `size` answers of a classifier beside its baseline. Memory does not grow beyond that. For one thread."""

    def __init__(self, baseline: Answers, size: int) -> None:
        self._baseline, self._size = baseline, size
        self._counts = _empty(len(baseline.labels) - 1)
        self._places: deque[Place] = deque()

    def add(self, one: Place) -> None:
        """Another answer, from `place`; the oldest makes room for it."""
        if len(self._places) == self._size:
            _add(self._counts, self._places.popleft(), -1)
        self._places.append(one)
        _add(self._counts, one, 1)

    def psi(self) -> dict[Of, float] | None:
        """The index of each distribution against the baseline; None until there are `LEAST_ANSWERS` (or `size`)."""
        if len(self._places) < min(LEAST_ANSWERS, self._size):
            return None
        b, c = self._baseline, self._counts
        return {
            "labels": psi(b.labels, c.labels),
            "confidence": psi(b.confidence, c.confidence),
            "length": psi(b.length, c.length),
        }


def _empty(labels: int) -> Answers:
    return Answers(
        labels=np.zeros(labels + 1, np.int64),
        confidence=np.zeros(CONFIDENCE_BINS, np.int64),
        length=np.zeros(len(LENGTH_ENDS) + 1, np.int64),
    )


def _add(counts: Answers, one: Place, sign: int) -> None:
    labels, confidence, length = one
    for label in labels:
        counts.labels[label] += sign
    counts.confidence[confidence] += sign
    counts.length[length] += sign
