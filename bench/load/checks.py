"""Whether answers under load are those that the bundle gives offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nopad.bench.load.protocols import Row
from nopad.runtime.errors import UsageError
from nopad.runtime.predictor import load


class Offline:
    """The right answer to each text. `worst` is the largest difference so far; infinity for one of another form."""

    def __init__(self, answers: Sequence[Row], tolerance: float) -> None:
        self._answers, self._tolerance = answers, tolerance
        self.worst = 0.0

    def __call__(self, texts: Sequence[int], rows: Sequence[Row]) -> bool:
        """Whether the rows are right: every score or element that they have, within the tolerance."""
        different = max(_difference(self._answers[index], row) for index, row in zip(texts, rows, strict=True))
        self.worst = max(self.worst, different)
        return different <= self._tolerance


def _difference(right: Row, row: Row) -> float:
    if isinstance(row, Mapping):
        if not isinstance(right, Mapping) or not row.keys() <= right.keys():
            return float("inf")
        return max(abs(right[label] - score) for label, score in row.items())
    expected = np.array(list(right.values())) if isinstance(right, Mapping) else right
    if expected.shape != row.shape or not np.isfinite(row).all():
        return float("inf")
    return float(np.abs(expected - row).max())


def offline(bundle: Path | None, texts: Sequence[str], *, threads: int | None, tolerance: float) -> Offline:
    """What the bundle (None: the embedded one) answers to these texts; embeddings are brought to length 1, as the
    protocols give them. Raises `UsageError` for other tasks.
    """
    with load(bundle, threads=threads) as model:
        if model.task == "embeddings":
            vectors = np.asarray(model.embed(list(texts)), dtype=np.float64)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            return Offline(list(vectors / np.maximum(lengths, 1e-12)), tolerance)
        if model.task != "text-classification":
            raise UsageError(f"--check compares scores and embeddings; {model.task} has neither")
        answers = model.predict(list(texts))
        return Offline([{label: answer.scores[label] for label in model.labels} for answer in answers], tolerance)
