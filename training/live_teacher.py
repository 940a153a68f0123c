"""Distillation of what is too large to keep: a teacher with the student's tokenizer reads each training batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.source import open_source
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.model.encoder import PackedEncoder
from nopad.runtime.errors import UsageError
from nopad.training.data import TrainingData
from nopad.training.tasks.base import CHOSEN, STREAM
from nopad.training.teacher import is_bundle

_COMPARED = 256  # training texts whose tokens must be the same


@dataclass(frozen=True, kw_only=True)
class LiveTeacher:
    """A teacher that is asked in every training step; nothing of it is trained or kept."""

    encoder: PackedEncoder

    def multiple(self, own: int) -> int:
        """What a stream's length is a multiple of, for the teacher and for a student that needs `own`."""
        return math.lcm(own, self.encoder.encoder_config.block)

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Of the batch's `CHOSEN` tokens, as the student's: fp32 [tokens, vocabulary]."""
        with torch.no_grad():
            found: Tensor = self.encoder(**{name: batch[name] for name in (*STREAM, CHOSEN) if name in batch})
        return found


def open_live_teacher(teacher: str, data: TrainingData, tokenizer: Any, max_length: int) -> LiveTeacher:
    """Open a checkpoint (a folder or a Hub name) that reads what `tokenizer`, the student's, makes of the texts.

    Raises `UsageError` for a bundle and for another tokenizer, and the errors of opening a checkpoint.
    """
    task = data.task.head
    if is_bundle(Path(teacher)):
        raise UsageError(
            f"the teacher {teacher} is a bundle: for --task {task} it is asked in every training step, which needs its "
            "weights; name the checkpoint that it was made from"
        )
    source = open_source(resolve_checkpoint(teacher))
    checkpoint = load_checkpoint(source, task=task)
    if max_length > checkpoint.config.max_position_embeddings:
        raise UsageError(
            f"--max-length {max_length:,}: the teacher {teacher} reads up to "
            f"{checkpoint.config.max_position_embeddings:,} tokens; lower it, or name another --teacher"
        )
    theirs = open_tokenizer(source.tokenizer)
    texts = data.train[:_COMPARED]["text"]
    options = {"truncation": True, "max_length": max_length}
    if theirs.get_vocab() != tokenizer.get_vocab() or (
        theirs(texts, **options)["input_ids"] != tokenizer(texts, **options)["input_ids"]
    ):
        raise UsageError(
            f"the teacher {teacher} has another tokenizer than the student: for --task {task} it must read the same "
            f"tokens. Give the student the teacher's, --tokenizer {teacher}, or name another --teacher"
        )
    checkpoint.encoder.requires_grad_(False).eval()
    return LiveTeacher(encoder=checkpoint.encoder)
