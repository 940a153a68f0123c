"""Embeddings as clients ask for them: cut, normalised, compared, in base64."""

from __future__ import annotations

import base64

import numpy as np

from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Answered
from nopad.runtime.types import FloatArray


def vectors_of(answered: Answered, *, normalize: bool, dimensions: int | None = None) -> FloatArray:
    """Embeddings, float32 [texts, dimensions]: cut to the first `dimensions` elements, then of length 1.

    Raises `Fault` for more dimensions than there are, and for NaN or infinity.
    """
    vectors = np.stack([answer.vector for answer in answered.answers])
    size = vectors.shape[1]
    if dimensions is not None:
        if not 1 <= dimensions <= size:
            raise Fault(
                "validation", f"`dimensions` must be between 1 and {size}, got {dimensions}", field="dimensions"
            )
        vectors = vectors[:, :dimensions]
    if normalize:
        # In float64, since the squares of large numbers do not fit float32. A vector of zeros stays one.
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        vectors = (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise Fault("engine", "Backend error: the embedding is not a number (NaN or infinity)")
    return vectors


def base64_of(vector: FloatArray) -> str:
    """One embedding as little-endian float32 in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
