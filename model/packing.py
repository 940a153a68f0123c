"""Token ids of many texts <-> one packed stream and its layout. numpy only; knows nothing of models and engines.

The stream of T tokens holds the sequences one after another, then filler up to a multiple of the attention
block. These arrays describe it completely; every engine and the encoder itself take exactly these:

- `input_ids[T]`, `token_type_ids[T]`
- `position_ids[T]`: place of each token in its own sequence, 0 for filler
- `sequence_ids[T]`: which sequence a token belongs to, -1 for filler
- `pad_index[B, S]`: stream index of token s of sequence b, -1 past its end; S is the longest length

Encoders that do not pool a prompt's tokens (sentence-transformers' `include_prompt` false) take one more:

- `prompt_lengths[B]`: tokens of the prompt at the beginning of each sequence, 0 without a prompt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
MOST_PADDING = 1.5  # positions of attention for each token of a micro-batch that is large enough (docs/serving.md)


def round_up(size: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `size`."""
    return -(-size // multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One micro-batch as a packed stream (shapes in the module's docstring; all int64)."""

    input_ids: IntArray
    token_type_ids: IntArray
    position_ids: IntArray
    sequence_ids: IntArray
    pad_index: IntArray
    cu_seqlens: IntArray  # [B + 1], cumulative lengths without the filler
    prompt_lengths: IntArray

    @property
    def lengths(self) -> IntArray:
        """Tokens of each sequence, [B]."""
        return np.diff(self.cu_seqlens)

    @property
    def num_tokens(self) -> int:
        """Real tokens, without filler."""
        return int(self.cu_seqlens[-1])


def pack(
    sequences: Sequence[Sequence[int]],
    token_type_ids: Sequence[Sequence[int]] | None = None,
    *,
    multiple: int = 64,
    filler_id: int = 0,
    prompt_lengths: Sequence[int] | None = None,
) -> PackedBatch:
    """Pack token id sequences into one stream whose length is a multiple of `multiple`.

    Raises `ValueError` without any sequence, and for an empty sequence: neither has an answer.
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    if lengths.size == 0 or lengths.min() == 0:
        raise ValueError("pack needs at least one sequence and at least one token in each")
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
    used = int(cu_seqlens[-1])
    total = round_up(used, multiple)

    def stream(rows: Sequence[Sequence[int]], filler: int) -> IntArray:
        out = np.full(total, filler, dtype=np.int64)
        out[:used] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        return out

    sequence_ids = np.full(total, -1, dtype=np.int64)
    sequence_ids[:used] = np.repeat(np.arange(len(lengths)), lengths)
    position_ids = np.zeros(total, dtype=np.int64)
    position_ids[:used] = np.arange(used) - np.repeat(cu_seqlens[:-1], lengths)
    offsets = np.arange(int(lengths.max()), dtype=np.int64)
    pad_index = np.where(offsets < lengths[:, None], cu_seqlens[:-1, None] + offsets, -1)
    return PackedBatch(
        input_ids=stream(sequences, filler_id),
        token_type_ids=np.zeros(total, dtype=np.int64) if token_type_ids is None else stream(token_type_ids, 0),
        position_ids=position_ids,
        sequence_ids=sequence_ids,
        pad_index=pad_index,
        cu_seqlens=cu_seqlens,
        prompt_lengths=np.asarray(prompt_lengths or np.zeros_like(lengths), dtype=np.int64),
    )


def to_padded(batch: PackedBatch, pad_id: int) -> tuple[IntArray, IntArray, IntArray]:
    """The same micro-batch as padded `input_ids`, `attention_mask`, `token_type_ids`, each [B, S]."""
    mask = batch.pad_index >= 0
    index = np.maximum(batch.pad_index, 0)
    return (
        np.where(mask, batch.input_ids[index], pad_id),
        mask.astype(np.int64),
        np.where(mask, batch.token_type_ids[index], 0),
    )


def plan_batches(
    lengths: Sequence[int],
    *,
    token_budget: int,
    max_sequences: int,
    padded: bool = False,
    square_budget: int | None = None,
    close_tokens: int | None = None,
) -> list[list[int]]:
    """Group sequences into micro-batches, sorted by length.

    A batch holds at most `token_budget` tokens (with `padded`, every sequence counts as long as its batch's longest)
    and `max_sequences` sequences. Global attention pads even a packed batch, so `sequences * longest ** 2` stays
    within `square_budget ** 2`, too (at most and by default `token_budget ** 2`): a long text is not batched with many
    short texts, and a large token budget does not lead to a large square. A sequence longer than the budget goes alone.
    A batch of `close_tokens` tokens (by default the budget) takes no sequence with which attention would be padded to
    more than `MOST_PADDING` times the tokens. Returns indices into `lengths`, each exactly once, the longest first (so
    that memory peaks at the start, not at the end of a long run).
    """
    if token_budget < 1 or max_sequences < 1:
        raise ValueError(f"token_budget and max_sequences must be positive, got {token_budget} and {max_sequences}")
    square = min(square_budget or token_budget, token_budget) ** 2
    close_tokens = token_budget if close_tokens is None else close_tokens
    batches: list[list[int]] = []
    tokens = room = longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        cost = longest if padded else lengths[index]
        members = len(batches[-1]) if batches else 0
        full = tokens + cost > token_budget or members >= room
        uneven = tokens >= close_tokens and (members + 1) * longest > MOST_PADDING * (tokens + cost)
        if not batches or full or uneven:
            batches.append([])
            tokens, longest = 0, lengths[index]
            cost = longest
            room = min(max_sequences, max(1, square // longest**2))
        batches[-1].append(index)
        tokens += cost
    return batches
