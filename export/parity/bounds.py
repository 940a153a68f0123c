"""How far a bundle may differ from its reference, and a row of the parity report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nopad.runtime.nearness import cosine, difference, scaled
from nopad.runtime.types import FloatArray

__all__ = ["BOUNDS", "SHARES", "Bounds", "Row", "answer_rows", "cosine", "difference", "scaled", "worst_rows"]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The bounds of a precision. `logits` is multiplied by the largest reference logit where that is over 1."""

    logits: float
    probabilities: float
    invariance: float
    agreement: float  # share of equal labels, 0..1
    accuracy_loss: float  # on labelled data, 0..1
    cosine: float | None = None  # of each embedding to the reference's, at least; None: the bound of logits is tighter


BOUNDS: dict[str, Bounds] = {
    "fp32": Bounds(logits=1e-5, probabilities=1e-5, invariance=1e-5, agreement=1.0, accuracy_loss=0.0),
    "fp16": Bounds(logits=2e-2, probabilities=1e-2, invariance=1e-2, agreement=0.999, accuracy_loss=0.001),
    # 3 bits of mantissa fewer than fp16; 7.6e-3 was measured (export/graph/precision.py).
    "bf16": Bounds(
        logits=5e-2, probabilities=2e-2, invariance=5e-2, agreement=0.999, accuracy_loss=0.001, cosine=0.9995
    ),
    # Labels and accuracy decide, of embeddings their direction; logits only tell that it is still the same model.
    "int8": Bounds(logits=0.5, probabilities=0.1, invariance=1e-2, agreement=0.995, accuracy_loss=0.003, cosine=0.99),
}


# Checks whose value is a share or a cosine, which has to be at least its bound; all others are differences.
SHARES = ("labels", "label names", "calibration", "cosine")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result of one check on one case."""

    check: str
    case: str
    value: float  # the largest difference, or a share (0..1), or the least cosine
    bound: float
    passed: bool
    note: str = ""

    @classmethod
    def at_most(cls, check: str, case: str, value: float, bound: float, note: str = "") -> Row:
        """A difference, which may be at most `bound`."""
        return cls(check=check, case=case, value=value, bound=bound, passed=value <= bound, note=note)

    @classmethod
    def at_least(cls, check: str, case: str, value: float, bound: float, note: str = "") -> Row:
        """A share or a cosine, which must be at least `bound`; its check is one of `SHARES`."""
        assert check in SHARES
        return cls(check=check, case=case, value=value, bound=bound, passed=value >= bound, note=note)


def answer_rows(case: str, got: FloatArray, want: FloatArray, bounds: Bounds, *, embedding: bool) -> Iterator[Row]:
    """How near an answer is to the reference's: its logits, and the direction of an embedding, or of each token's."""
    yield Row.at_most("logits", case, difference(got, want), scaled(bounds.logits, want))
    if embedding and bounds.cosine is not None:
        yield Row.at_least("cosine", case, cosine(got, want), bounds.cosine)


def worst_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, Mapping[str, Any], bool]]:
    """Of each check in a report's rows (as JSON): how many there are, the one nearest to its bound, or furthest over
    it, and whether all have passed.
    """
    worst: dict[str, tuple[int, Mapping[str, Any], bool]] = {}
    for check in dict.fromkeys(row["check"] for row in rows):
        group = [row for row in rows if row["check"] == check]
        row = (min if check in SHARES else max)(group, key=_share_of_bound)
        worst[check] = (len(group), row, all(row["passed"] for row in group))
    return worst


def _share_of_bound(row: Mapping[str, Any]) -> float:
    return math.inf if row["value"] is None else float(row["value"]) / (row["bound"] or 1.0)
