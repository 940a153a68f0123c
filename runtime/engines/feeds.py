"""A packed batch as the inputs of a graph, packed or padded, and its logits on the stream. Knows no library."""

from __future__ import annotations

import numpy as np

from nopad.model.packing import IntArray, PackedBatch, to_padded
from nopad.runtime.manifest import Artifact
from nopad.runtime.types import FloatArray

_STREAM = ("input_ids", "token_type_ids", "position_ids", "sequence_ids")


def graph_inputs(batch: PackedBatch, artifact: Artifact, pad_token_id: int) -> dict[str, IntArray]:
    """The inputs that the graph of `artifact` names. A graph that needs no filler gets none of the batch's."""
    if artifact.layout == "padded":
        feeds = _padded(batch, pad_token_id)
    else:
        end = None if artifact.token_multiple > 1 else batch.num_tokens  # filler that another engine needs
        feeds = {name: getattr(batch, name)[:end] for name in _STREAM}
        feeds |= {"pad_index": batch.pad_index, "prompt_lengths": batch.prompt_lengths}
    return {name: feeds[name] for name in artifact.inputs}


def _padded(batch: PackedBatch, pad_token_id: int) -> dict[str, IntArray]:
    input_ids, attention_mask, token_type_ids = to_padded(batch, pad_token_id)
    position_ids = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "prompt_lengths": batch.prompt_lengths,
    }


def on_stream(logits: FloatArray, batch: PackedBatch, artifact: Artifact) -> FloatArray:
    """Logits as an engine returns them: a padded graph's per-token logits are put back on the stream."""
    if artifact.layout != "padded" or logits.ndim != 3:
        return logits
    stream = np.zeros((len(batch.input_ids), logits.shape[-1]), dtype=np.float32)
    real = batch.pad_index >= 0
    stream[batch.pad_index[real]] = logits[real]
    return stream
