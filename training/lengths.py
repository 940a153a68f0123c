"""How long the texts are that a run trains on: the histogram that `nopad plan` takes, and what to say of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from nopad.training.batches import IntArray

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class LengthReport:
    """Token lengths as the model meets them, special tokens included; of pairs and triplets, those of each text."""

    counts: dict[int, int]  # length -> texts (of divided texts, parts)
    max_length: int  # tokens, where longer texts are cut or divided
    divided: bool  # not cut

    @property
    def texts(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    def percentile(self, percent: float) -> int:
        """The least length that so many percent of the texts do not exceed."""
        lengths = sorted(self.counts)
        reached = np.cumsum([self.counts[length] for length in lengths])
        return lengths[int(np.searchsorted(reached, percent / 100 * self.texts))]

    @property
    def at_limit(self) -> float:
        """The share of texts that reach the max length: all that were cut, and those of just that length."""
        return self.counts.get(self.max_length, 0) / self.texts

    def line(self) -> str:
        """All of it in a sentence."""
        some = ", ".join(f"{percent} % at most {self.percentile(percent):,}" for percent in _PERCENTILES)
        counted, there = ("parts of texts", "are divided") if self.divided else ("texts", "end")
        return (
            f"tokens of {self.texts:,} {counted}: {some}, longest {max(self.counts):,}; "
            f"{100 * self.at_limit:.3g} % reach --max-length {self.max_length:,}, where texts {there}"
        )

    def record(self) -> dict[str, Any]:
        """Plain values, for `config.json`."""
        shares = {f"p{percent}": self.percentile(percent) for percent in _PERCENTILES}
        return {"texts": self.texts, **shares, "longest": max(self.counts), "at_limit": round(self.at_limit, 6)}

    def histogram(self) -> str:
        """What `nopad plan --lengths` reads: a JSON object, length -> number of texts."""
        return json.dumps({str(length): self.counts[length] for length in sorted(self.counts)}) + "\n"


def length_report(lengths: IntArray, max_length: int, *, divided: bool) -> LengthReport:
    """The report of `nopad.training.batches.text_lengths`; `divided`: texts over `max_length` are not cut there."""
    each, counts = np.unique(lengths, return_counts=True)
    found = dict(zip(each.tolist(), counts.tolist(), strict=True))
    return LengthReport(counts=found, max_length=max_length, divided=divided)
