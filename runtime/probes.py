"""Probes: texts with the reference's answers, which a bundle carries so that it can be checked where it is opened.

Written by the parity gate (`nopad.export.parity.probes`), read by `nopad.runtime.selfcheck`. Of a large answer only
some elements are kept.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nopad.runtime.types import FloatArray, Text

MOST = 1024  # elements that are kept of one row: all of most embeddings and of most models' labels
MOST_OF_TOKENS = 64  # of an answer that has a row for each token


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A text, and elements of the reference's logits (or embedding) for it."""

    text: Text
    shape: tuple[int, ...]  # of the whole answer
    at: tuple[int, ...]  # places of the kept elements in the flat answer; () for all of them
    values: str  # the kept elements: float32, little-endian, in base64

    @property
    def wanted(self) -> FloatArray:
        """The kept elements."""
        return np.frombuffer(base64.b64decode(self.values, validate=True), "<f4").astype(np.float32)

    def part(self, answer: FloatArray) -> FloatArray:
        """The same elements of another answer, which has this probe's shape."""
        flat: FloatArray = answer.reshape(-1)
        return flat[list(self.at)] if self.at else flat


def probe_of(text: Text, answer: FloatArray, best_of: int | None = None) -> Probe:
    """The probe of a text with the reference's answer to it.

    The element of the largest absolute value is always kept: bounds are scaled by it. `best_of`: of an answer with a
    row for each token, keep the highest elements of this row, else elements of all rows.
    """
    flat = np.asarray(answer, dtype=np.float32).reshape(-1)
    most = MOST if answer.ndim == 1 else MOST_OF_TOKENS
    at: tuple[int, ...] = ()
    if flat.size > most:
        if best_of is None:
            chosen = np.linspace(0, flat.size - 1, most - 1).astype(int)
        else:
            width = answer.shape[-1]
            chosen = best_of * width + np.argsort(-answer[best_of])[: most - 1]
        at = tuple(sorted({int(np.abs(flat).argmax()), *map(int, chosen)}))
    kept = flat[list(at)] if at else flat
    values = base64.b64encode(kept.astype("<f4").tobytes()).decode("ascii")
    return Probe(text=text, shape=tuple(answer.shape), at=at, values=values)


def probe_from_json(raw: Mapping[str, Any]) -> Probe:
    """A probe as the manifest has it. Raises `KeyError`, `TypeError` or `ValueError`."""
    text = raw["text"]
    parts: Sequence[Any] = [text] if isinstance(text, str) else text
    if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
        raise TypeError("a probe's text is no text and no pair of texts")
    shape, at = tuple(raw["shape"]), tuple(raw["at"])
    if not all(type(number) is int and number >= 0 for number in (*shape, *at)):
        raise TypeError("a probe's shape or places are no whole numbers")
    whole = text if isinstance(text, str) else (parts[0], parts[1])
    probe = Probe(text=whole, shape=shape, at=at, values=raw["values"])
    size = math.prod(shape)
    kept = probe.wanted
    if not kept.size or kept.size != (len(at) or size) or max(at, default=0) >= size or not np.isfinite(kept).all():
        raise ValueError("a probe's values do not fit its shape")
    return probe
