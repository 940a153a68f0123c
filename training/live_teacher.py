"""Distillation of what is too large to keep: a teacher with the student's tokenizer reads each training batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nopad.model.attention import Attend, PackedLayout, pick
from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.source import open_source
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.model.encoder import PackedEncoder
from nopad.training.data import TrainingData
from nopad.training.errors import TeacherError
from nopad.training.recipe import Recipe
from nopad.training.tasks.base import CHOSEN, STREAM
from nopad.training.teacher import is_bundle

_COMPARED = 256  # training rows whose tokens must be the same


@dataclass(frozen=True, kw_only=True)
class LiveTeacher:
    """A teacher that is asked in every training step; nothing of it is trained or kept."""

    encoder: PackedEncoder
    projection: Tensor  # of its hidden states to the student's size, [its size, the student's]

    def to(self, device: torch.device) -> LiveTeacher:
        """The same on a device."""
        return LiveTeacher(encoder=self.encoder.to(device), projection=self.projection.to(device))

    def multiple(self, own: int) -> int:
        """What a stream's length is a multiple of, for the teacher and for a student that needs `own`."""
        return math.lcm(own, self.encoder.encoder_config.block)

    def read(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Its logits of the batch, fp32, and its hidden states, [T, its size]."""
        with torch.no_grad(), hidden_states(self.encoder) as states:
            logits: Tensor = self.encoder(**{name: batch[name] for name in (*STREAM, CHOSEN) if name in batch})
        return logits, states[0]

    def projected(self, states: Tensor) -> Tensor:
        """Its hidden states [T, its size] in the student's size, fp32."""
        return states.float() @ self.projection


@contextmanager
def hidden_states(encoder: PackedEncoder) -> Iterator[list[Tensor]]:
    """Of each forward of `encoder` inside, its last layer's [T, hidden_size]."""
    backbone, found = encoder.backbone(), list[Tensor]()
    encode = backbone.encode

    def all_kept(
        ids: Tensor, types: Tensor | None, layout: PackedLayout, attend: Attend, chosen: Tensor | None = None
    ) -> Tensor:
        found.append(encode(ids, types, layout, attend))
        return pick(found[-1], chosen)

    vars(backbone)["encode"] = all_kept
    try:
        yield found
    finally:
        del vars(backbone)["encode"]


def projection(theirs: int, own: int, seed: int) -> Tensor:
    """From a teacher's hidden states to those of a student's size, [theirs, own]: nothing that is learned.

    The same states where sizes are equal, else drawn at random with orthonormal columns or rows: angles are kept, or
    nearly so (W. Johnson and J. Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984).
    """
    if theirs == own:
        return torch.eye(own)
    drawn = torch.randn(max(theirs, own), min(theirs, own), generator=torch.Generator().manual_seed(seed))
    basis: Tensor = torch.linalg.qr(drawn)[0]
    return basis if theirs > own else basis.T


def states_apart(own: Tensor, theirs: Tensor, sequence_ids: Tensor) -> Tensor:
    """How far hidden states [T, size] are from a teacher's of that size: a scalar, the mean over the tokens.

    The squared distance (TinyBERT, X. Jiao et al., arXiv:1909.10351), as a share of the teacher's squared length.
    """
    real = sequence_ids >= 0
    own, theirs = own[real].float(), theirs[real]
    return ((own - theirs).square().sum(-1) / theirs.square().sum(-1).clamp_min(1e-12)).mean()


def open_live_teacher(recipe: Recipe, data: TrainingData, tokenizer: Any, *, size: int) -> LiveTeacher:
    """Open the recipe's teacher, a checkpoint that reads what `tokenizer`, the student's, makes of the texts.

    `size` is that of the student's hidden states; the recipe's seed draws the projection to it.
    Raises `TeacherError` for a bundle and for another tokenizer, and the errors of opening a checkpoint.
    """
    assert recipe.teacher is not None
    teacher, max_length, task = recipe.teacher, recipe.max_length, data.task.head
    asking = "--task fill-mask" if task == "fill-mask" else "--teacher-states"
    if is_bundle(Path(teacher)):
        raise TeacherError(
            f"the teacher {teacher} is a bundle: for {asking} it is asked in every training step, which needs its "
            "weights; name the checkpoint that it was made from"
        )
    source = open_source(resolve_checkpoint(teacher))
    checkpoint = load_checkpoint(source, task=task)
    if max_length > checkpoint.config.max_position_embeddings:
        raise TeacherError(
            f"--max-length {max_length:,}: the teacher {teacher} reads up to "
            f"{checkpoint.config.max_position_embeddings:,} tokens; lower it, or name another --teacher"
        )
    theirs = open_tokenizer(source.tokenizer)
    texts = _texts(data.train[:_COMPARED])
    options = {"truncation": True, "max_length": max_length}
    if theirs.get_vocab() != tokenizer.get_vocab() or (
        theirs(texts, **options)["input_ids"] != tokenizer(texts, **options)["input_ids"]
    ):
        raise TeacherError(
            f"the teacher {teacher} has another tokenizer than the student: for {asking} it must read the same "
            f"tokens. Give the student the teacher's, --tokenizer {teacher}, or name another --teacher"
        )
    checkpoint.encoder.requires_grad_(False).eval()
    return LiveTeacher(
        encoder=checkpoint.encoder, projection=projection(checkpoint.config.hidden_size, size, recipe.seed)
    )


def _texts(rows: Mapping[str, list[Any]]) -> list[str]:
    """All texts of some rows of the data, from whichever columns."""
    cells = [
        cell for column in rows.values() for value in column for cell in (value if isinstance(value, list) else [value])
    ]
    return [cell for cell in cells if isinstance(cell, str)]
