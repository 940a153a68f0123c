"""What tasks share whose targets are of tokens: only some tokens have one, and the head computes only theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nopad.model.errors import CheckpointError
from nopad.training.tasks.base import CHOSEN, TARGETS, Task, pack_stream

IGNORED = -100  # of a token without a target: PyTorch's number, and transformers'


def pack_token_targets(rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
    """Rows with a `target` for each of their `input_ids` -> a packed batch.

    Its `TARGETS` are int64 [rows, tokens of the longest row], `IGNORED` past the end of the others; its `CHOSEN` are
    those tokens of the stream that have a target, in the order of the targets.
    """
    stream = pack_stream(rows, multiple=multiple)
    index = stream["pad_index"]
    targets = torch.full_like(index, IGNORED)
    targets[index >= 0] = torch.tensor([target for row in rows for target in row["target"]])
    return {TARGETS: targets, **stream, CHOSEN: index[targets != IGNORED]}


class TokenTask(Task, Protocol):
    """The loss of a task whose batches come from `pack_token_targets`, with logits of their `CHOSEN` tokens."""

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """Cross-entropy, the mean over the tokens that have a target; 0 where none has."""
        targets = known_targets(batch)
        total = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
        return total / max(len(targets), 1)

    def items(self, batch: Mapping[str, Tensor]) -> int:
        """The tokens that have a target."""
        return len(known_targets(batch))


def known_targets(batch: Mapping[str, Tensor]) -> Tensor:
    """The targets of a batch without those to ignore, [len(batch[CHOSEN])]."""
    targets = batch[TARGETS]
    return targets[targets != IGNORED]


def need_offsets(tokenizer: Any) -> None:
    """Raise `CheckpointError` for a tokenizer that does not know where its tokens stand in a text."""
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{type(tokenizer).__name__} does not say where its tokens stand in a text; name a folder that has a "
            "tokenizer.json with --tokenizer"
        )
