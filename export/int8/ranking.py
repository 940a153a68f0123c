"""Embeddings against those of another model: how near they are, and whether a search finds the same texts.

Knows numpy alone.
"""

from __future__ import annotations

import numpy as np

from nopad.runtime.types import FloatArray

TOP = 10  # neighbours that are compared


def cosines(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """The cosine of each embedding [rows, width] to its counterpart: [rows]."""
    return np.asarray((unit(ours) * unit(theirs)).sum(axis=1), dtype=np.float32)


def overlap(ours: FloatArray, theirs: FloatArray) -> float:
    """The share of equal texts among each text's `TOP` nearest others, 0..1, by cosine; order does not count.

    With fewer than `TOP` + 2 rows all others are near, so the share is 1.
    """
    return same_neighbours(_others(ours), _others(theirs))


def search_overlap(ours: tuple[FloatArray, FloatArray], theirs: tuple[FloatArray, FloatArray], top: int = TOP) -> float:
    """The share of equal texts among the `top` results of each query, 0..1; both are (queries, corpus)."""
    first, second = (unit(queries) @ unit(corpus).T for queries, corpus in (ours, theirs))
    return same_neighbours(first, second, top)


def same_neighbours(first: FloatArray, second: FloatArray, top: int = TOP) -> float:
    """The share of columns among the `top` highest of each row that both score matrices have in common."""
    top = min(top, first.shape[1] - 1)
    pairs = zip(*(np.argsort(-scores, axis=1, kind="stable")[:, :top] for scores in (first, second)), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / max(top, 1) for a, b in pairs]))


def unit(rows: FloatArray) -> FloatArray:
    """Each row divided by its length."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def _others(rows: FloatArray) -> FloatArray:
    """The cosine of each row to each, but for its own, which is never among the nearest."""
    scores = unit(rows) @ unit(rows).T
    np.fill_diagonal(scores, -np.inf)
    return np.asarray(scores, dtype=np.float32)
