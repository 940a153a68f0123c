"""Embeddings as clients ask for them: cut, normalised, compared, in base64."""

from __future__ import annotations

import base64

import numpy as np

from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Answered
from nopad.runtime.types import FloatArray

MOST_NUMBERS = 10_000_000  # of one answer with an embedding of each token: 110 MB of JSON, written in a second


def vectors_of(answered: Answered, *, normalize: bool, dimensions: int | None = None) -> FloatArray:
    """Embeddings, float32 [texts, dimensions]: cut to the first `dimensions` elements, then of length 1.

    Raises `Fault` for more dimensions than there are, and for NaN or infinity.
    """
    return _shaped(np.stack([answer.vector for answer in answered.answers]), normalize, dimensions)


def token_vectors_of(answered: Answered, *, normalize: bool, dimensions: int | None = None) -> list[FloatArray]:
    """The same of each text's tokens, float32 [tokens, dimensions]; a `Fault` for more than `MOST_NUMBERS` in all."""
    numbers = sum(answer.vectors.size for answer in answered.answers)
    if numbers > MOST_NUMBERS:
        raise Fault(
            "validation",
            f"the embeddings of {answered.tokens} tokens are {numbers} numbers, over {MOST_NUMBERS} in one answer; "
            "send fewer texts, or shorter ones",
        )
    return [_shaped(answer.vectors, normalize, dimensions) for answer in answered.answers]


def _shaped(vectors: FloatArray, normalize: bool, dimensions: int | None) -> FloatArray:
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
