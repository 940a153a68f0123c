"""How near an answer is to its reference: for the parity gate, and for the self-check of an opened bundle."""

from __future__ import annotations

import numpy as np

from nopad.runtime.types import FloatArray


def difference(a: FloatArray, b: FloatArray) -> float:
    """The largest absolute difference; infinite if the shapes differ or `a` is not finite."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max())


def cosine(a: FloatArray, b: FloatArray) -> float:
    """The cosine of two embeddings, or the least of several [rows, width]; -1 where `difference` is infinite."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return -1.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(axis=-1) / np.maximum(lengths, 1e-12)).min())


def scaled(bound: float, reference: FloatArray) -> float:
    """`bound`, multiplied by the largest value of `reference` where that is over 1."""
    return bound * max(1.0, float(np.abs(reference).max()))
