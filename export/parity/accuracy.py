"""Accuracy, F1, squared error and agreement of a bundle and of transformers on labelled texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nopad.model.head import Head
from nopad.runtime.data.labelled import Targets
from nopad.runtime.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The bundle and transformers on the same rows."""

    rows: int  # texts; of token classification, tokens
    agreement: float | None  # share of rows with equal labels; None for regression
    label_mix: dict[str, float]  # share of rows with each predicted label: a baseline for drift
    seconds: float  # of the bundle, tokenization included
    reference_seconds: float
    accuracy: float | None = None  # of the bundle; None without labels. Multi-label: all labels of a row must be right
    reference_accuracy: float | None = None
    f1: float | None = None  # weighted; of token classification, of whole entities
    reference_f1: float | None = None
    mse: float | None = None  # mean squared error, for regression
    reference_mse: float | None = None
    entities: int | None = None  # of token classification: the true ones


def evaluate(
    bundle_logits: FloatArray,
    reference_logits: FloatArray,
    head: Head,
    targets: Targets | None,
    seconds: tuple[float, float],
) -> Evaluation:
    """Scores of the bundle's logits and of transformers', both [rows, num_labels]; `seconds` that each took."""
    agreement, label_mix = None, {}
    scores: dict[str, Any] = {}
    if head.has_labels:
        got, want = head.decide(bundle_logits), head.decide(reference_logits)
        agreement = equal_rows(got, want)
        label_mix = {name: float(got[:, i].mean()) for i, name in enumerate(head.labels)}
        if targets is not None:
            scores = {
                "accuracy": equal_rows(got, targets),
                "reference_accuracy": equal_rows(want, targets),
                "f1": weighted_f1(targets, got),
                "reference_f1": weighted_f1(targets, want),
            }
    elif targets is not None:
        scores = {"mse": _mse(bundle_logits, targets), "reference_mse": _mse(reference_logits, targets)}
    return Evaluation(
        rows=len(bundle_logits),
        agreement=agreement,
        label_mix=label_mix,
        seconds=seconds[0],
        reference_seconds=seconds[1],
        **scores,
    )


def equal_rows(a: Targets, b: Targets) -> float:
    """Share of rows that are equal in every column."""
    return float((a == b).all(axis=1).mean())


def _mse(logits: FloatArray, targets: Targets) -> float:
    return float(np.mean((logits - targets) ** 2))


def weighted_f1(truth: Targets, guess: Targets) -> float:
    """F1 of each label, weighted by its share of the truth (scikit-learn's `average="weighted"`)."""
    hits = (truth * guess).sum(axis=0)
    relevant, selected = truth.sum(axis=0), guess.sum(axis=0)
    each = 2 * hits / np.maximum(relevant + selected, 1)
    return float((each * relevant).sum() / max(relevant.sum(), 1))
