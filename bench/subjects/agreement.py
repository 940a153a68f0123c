"""Whether two subjects answer the same: labels, logits, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nopad.model.head import ProblemType
from nopad.runtime.data.labelled import Targets, decide, equal_rows
from nopad.runtime.errors import EngineError
from nopad.runtime.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What logits mean."""

    task: str
    problem_type: ProblemType | None

    def labels(self, answers: Sequence[FloatArray]) -> Targets | None:
        """Decisions as rows of zeros and ones, one for each text or token; None where logits decide nothing."""
        if self.task in ("embeddings", "rerank"):
            return None
        if self.task == "text-classification":
            return decide(np.stack(answers), self.problem_type)
        rows = np.concatenate(answers).argmax(-1)
        return rows[:, None].astype(np.float64)


def require_finite(answers: Sequence[FloatArray]) -> None:
    """Raises `EngineError` for an answer with NaN or infinity in it."""
    bad = [index for index, one in enumerate(answers) if not np.isfinite(one).all()]
    if bad:
        raise EngineError(f"answered NaN or infinity for {len(bad)} of {len(answers)} texts, first for text {bad[0]}")


def compare(answers: Sequence[FloatArray], other: Sequence[FloatArray], kind: Kind) -> tuple[float | None, float]:
    """Share of equal labels (None where there are none), and the largest difference of logits.

    Raises `EngineError` if the two are not of one shape.
    """
    shapes = [(a.shape, b.shape) for a, b in zip(answers, other, strict=True) if a.shape != b.shape]
    if shapes:
        raise EngineError(f"answered in shape {shapes[0][0]}, expected {shapes[0][1]}: it cannot be compared")
    difference = max(float(np.abs(a - b).max(initial=0.0)) for a, b in zip(answers, other, strict=True))
    mine, theirs = kind.labels(answers), kind.labels(other)
    return (None if mine is None or theirs is None else equal_rows(mine, theirs)), difference


def accuracy(answers: Sequence[FloatArray], targets: Targets | None, kind: Kind) -> float | None:
    """Share of texts answered rightly; None without labels."""
    guesses = None if targets is None else kind.labels(answers)
    if guesses is None or targets is None or guesses.shape != targets.shape:
        return None
    return equal_rows(guesses, targets)
