"""Whether two subjects answer the same: labels, logits, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nopad.export.parity.accuracy import equal_rows
from nopad.model.head import Head
from nopad.runtime.data.labelled import Targets
from nopad.runtime.errors import EngineError
from nopad.runtime.types import FloatArray


def _labels(answers: Sequence[FloatArray], head: Head) -> Targets | None:
    """Zeros and ones for each text, or the label's index for each token; None where the task has no labels."""
    if not head.has_labels:
        return None
    if head.task == "text-classification":
        return head.decide(np.stack(answers))
    return head.best(np.concatenate(answers))[:, None].astype(np.float64)


def require_finite(answers: Sequence[FloatArray]) -> None:
    """Raises `EngineError` for an answer with NaN or infinity in it."""
    bad = [index for index, answer in enumerate(answers) if not np.isfinite(answer).all()]
    if bad:
        raise EngineError(f"answered NaN or infinity for {len(bad)} of {len(answers)} texts, first for text {bad[0]}")


def compare(answers: Sequence[FloatArray], other: Sequence[FloatArray], head: Head) -> tuple[float | None, float]:
    """Share of equal labels (None where there are none), and the largest difference of logits.

    Raises `EngineError` if their shapes differ.
    """
    shapes = [(a.shape, b.shape) for a, b in zip(answers, other, strict=True) if a.shape != b.shape]
    if shapes:
        raise EngineError(f"answered in shape {shapes[0][0]}, expected {shapes[0][1]}: it cannot be compared")
    difference = max(float(np.abs(a - b).max(initial=0.0)) for a, b in zip(answers, other, strict=True))
    mine, theirs = _labels(answers, head), _labels(other, head)
    return (None if mine is None or theirs is None else equal_rows(mine, theirs)), difference


def smallest_cosine(answers: Sequence[FloatArray], other: Sequence[FloatArray]) -> float:
    """The smallest cosine between a text's two embeddings; 1 where both are zero."""
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(answers, other, strict=True)]
    lengths = [float(np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]
    return min(float(a @ b) / length if length else 1.0 for (a, b), length in zip(pairs, lengths, strict=True))


def accuracy(answers: Sequence[FloatArray], targets: Targets | None, head: Head) -> float | None:
    """Share of texts answered correctly; None without labels."""
    guesses = None if targets is None else _labels(answers, head)
    if guesses is None or targets is None or guesses.shape != targets.shape:
        return None
    return equal_rows(guesses, targets)
