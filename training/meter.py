"""What passes through training: texts, tokens and losses, and the rows of every batch. A loss of NaN ends the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nopad.training.errors import DivergedError
from nopad.training.tasks.base import ROW

FACTS = "facts"  # of a batch, beside its tensors
_SHOWN = 3  # rows whose texts a message shows


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a batch is made of. No tuple or mapping, in which libraries would look for tensors."""

    rows: tuple[int, ...]  # of the data, from 0
    texts: int
    tokens: int  # without filler


def collate_with_facts(
    rows: Sequence[Mapping[str, Any]], *, collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]
) -> dict[str, Any]:
    """The batch that `collate` makes of encoded rows, and its `Facts`."""
    batch = collate(rows)
    facts = Facts(
        rows=tuple(int(row[ROW]) for row in rows),
        texts=len(batch["pad_index"]),
        tokens=int((batch["sequence_ids"] >= 0).sum()),
    )
    return {**batch, FACTS: facts}


class Meter:
    """Counts of a run since it was started, in batches that were trained on. `data`: the rows that they are made of."""

    def __init__(self, data: Any) -> None:
        self.batches = 0
        self.texts = 0
        self.tokens = 0
        self.loss = 0.0  # the sum of the batches' losses
        self._data = data

    def add(self, facts: Facts, loss: Tensor, *, step: int) -> None:
        """Count a batch of step `step`, from 1; `loss` is the mean of its items.

        Raises `DivergedError` where the loss is not finite: before any weight is changed by it.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"training diverged (loss {value:g} at step {step}), with the rows "
                f"{', '.join(map(str, sorted(facts.rows)))} of the training data{self._texts(facts.rows)}; "
                "or the step before has spoilt the weights"
            )
        self.batches += 1
        self.texts += facts.texts
        self.tokens += facts.tokens
        self.loss += value

    def _texts(self, rows: Sequence[int]) -> str:
        """The first of them as people find them again: by their texts."""
        if "text" not in self._data.column_names:
            return ""
        shown = [f"{row}: {self._data[row]['text']!r:.60}" for row in sorted(rows)[:_SHOWN]]
        return f" ({', '.join(shown)}{', ...' if len(rows) > _SHOWN else ''})"
