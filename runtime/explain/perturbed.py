"""A text with some of its units removed, as token ids: what is run, and what the logits are taken together to.

Removed tokens are dropped, which costs a packed encoder nothing and saves their computation, or replaced by the mask.
A text that is read in windows keeps the windows of the whole text, so that removing a word changes only the windows
that hold it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nopad.model.head import Head
from nopad.runtime.explain.units import Unit
from nopad.runtime.long_texts import merged
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import FloatArray, Merge


@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """The same text several times, with other units removed. What is the same in several is run once."""

    tokens: Tokens  # the whole text's
    texts: tuple[Tokens, ...]  # what is run, each different from the others
    windows: tuple[tuple[int, ...], ...]  # for each variant of the text, those of `texts` that it is read in

    def logits(self, rows: Sequence[FloatArray], head: Head, merge: Merge | None) -> FloatArray:
        """Those of each variant, float32 [variants, num_labels], from those of `texts`."""
        if not self.tokens.windows:
            return np.stack([rows[place] for (place,) in self.windows])
        return np.stack([merged(self.tokens, [rows[i] for i in places], head, merge) for places in self.windows])


def perturb(
    tokens: Tokens, units: Sequence[Unit], kept: npt.NDArray[np.bool_], *, mask: int | None, stand_in: int
) -> Perturbed:
    """A variant of the text for each row of `kept` [variants, units].

    `mask`: id of the token that takes the place of a removed one; None drops it. `stand_in`: id of the token that is
    run where nothing would be left, not even special tokens.
    """
    owner = np.full(len(tokens.input_ids), -1)
    for number, unit in enumerate(units):
        owner[list(unit.tokens)] = number
    ids, types = np.asarray(tokens.input_ids), np.asarray(tokens.token_type_ids)
    places = [_places(tokens, start, stop) for _, start, stop in tokens.windows] or [np.arange(len(ids))]
    texts: dict[tuple[int, bytes], int] = {}
    run: list[Tokens] = []
    variants = []
    for row in kept:
        stays = np.append(row, True)[owner]  # the last, -1: what is in no unit
        own = []
        for number, window in enumerate(places):
            key = number, stays[window].tobytes()
            if key not in texts:
                texts[key] = len(run)
                run.append(_variant(tokens, ids[window], types[window], stays[window], mask, stand_in))
            own.append(texts[key])
        variants.append(tuple(own))
    return Perturbed(tokens=tokens, texts=tuple(run), windows=tuple(variants))


def _places(tokens: Tokens, start: int, stop: int) -> npt.NDArray[np.int64]:
    """The whole text's tokens that stand in a window."""
    before, after = tokens.body
    return np.concatenate((np.arange(before), np.arange(start, stop), np.arange(after, len(tokens.input_ids))))


def _variant(
    tokens: Tokens,
    ids: npt.NDArray[np.int64],
    types: npt.NDArray[np.int64],
    stays: npt.NDArray[np.bool_],
    mask: int | None,
    stand_in: int,
) -> Tokens:
    if mask is not None:
        ids = np.where(stays, ids, mask)
    elif stays.any():
        ids, types = ids[stays], types[stays]
    else:
        ids, types = np.array([stand_in]), types[:1]
    return dataclasses.replace(
        tokens,
        input_ids=ids.tolist(),
        token_type_ids=types.tolist(),
        offsets=[],
        special=[],
        pieces=[],
        windows=(),
        tokens=len(ids),
    )
