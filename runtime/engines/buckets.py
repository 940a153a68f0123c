"""Padding batches to a few bucket shapes, for engines that compile kernels for every new shape.

The padding changes no answer: filler tokens at the end of the stream, columns of `pad_index` past the end of every
sequence, and rows of `pad_index` that point to a single token (the stream's first), so that they compute finite values.
The caller cuts these rows off.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from nopad.model.packing import IntArray, PackedBatch, round_up
from nopad.runtime.profiles import ShapeProfile

# Steps: small enough to waste little, large enough that a service sees few shapes.
TOKEN_BLOCKS = 4  # attention blocks, of 64 tokens mostly
LONGEST_STEP = 64  # tokens


def fill_bucket(batch: PackedBatch, profile: ShapeProfile, *, token_multiple: int, filler_id: int) -> PackedBatch:
    """`batch` padded, within the `profile` that it fits, to the next multiples (above) and power of two of sequences.

    `cu_seqlens` does not change: it holds the real sequences.
    """
    sequences, longest = batch.pad_index.shape
    tokens = min(round_up(len(batch.input_ids), TOKEN_BLOCKS * token_multiple), profile.tokens[2])
    rows = min(1 << (sequences - 1).bit_length(), profile.sequences[2]) - sequences
    columns = min(round_up(longest, LONGEST_STEP), profile.longest[2]) - longest
    pad_index = np.pad(batch.pad_index, ((0, rows), (0, columns)), constant_values=-1)
    pad_index[sequences:, 0] = 0

    return dataclasses.replace(
        fill_stream(batch, tokens, filler_id),
        pad_index=pad_index,
        prompt_lengths=np.pad(batch.prompt_lengths, (0, rows)),
    )


def fill_stream(batch: PackedBatch, tokens: int, filler_id: int) -> PackedBatch:
    """`batch` with as much filler at the end of its stream as makes `tokens` in all."""

    def stream(values: IntArray, filler: int) -> IntArray:
        real = values[: batch.num_tokens]
        return np.pad(real, (0, tokens - len(real)), constant_values=filler)

    return dataclasses.replace(
        batch,
        input_ids=stream(batch.input_ids, filler_id),
        token_type_ids=stream(batch.token_type_ids, 0),
        position_ids=stream(batch.position_ids, 0),
        sequence_ids=stream(batch.sequence_ids, -1),
    )
