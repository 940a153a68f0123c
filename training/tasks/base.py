"""The protocol of training tasks, and what several of them share. Knows nothing of `Trainer` and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from nopad.model.packing import pack

TARGETS = "labels"  # of a batch: transformers' name
FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


class Task(Protocol):
    """How rows become batches, what is minimised, and what an evaluation says."""

    metric_names: Sequence[str]  # in the order in which they are shown
    best_metric: str  # decides which epoch is kept
    greater_is_better: bool

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """Rows of `input_ids` (and `token_type_ids`), `target` -> one packed batch, its `TARGETS` first.

        The stream's length is a multiple of `multiple`.
        """

    def loss(self, logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """The loss that transformers' own classes use; a scalar, of one batch's logits and `TARGETS`."""

    def metrics(self, logits: FloatArray, targets: Array) -> dict[str, float]:
        """The metrics of all evaluation rows at once."""


def pack_rows(rows: Sequence[Mapping[str, Any]], dtype: torch.dtype, *, multiple: int) -> dict[str, Tensor]:
    """Rows, each with a `target` -> a packed batch."""
    types = [row["token_type_ids"] for row in rows] if "token_type_ids" in rows[0] else None
    batch = pack([row["input_ids"] for row in rows], types, multiple=multiple)
    arrays = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids")
    return {  # Trainer takes the batch size from the first tensor
        TARGETS: torch.tensor([row["target"] for row in rows], dtype=dtype),
        **{name: torch.from_numpy(getattr(batch, name)) for name in arrays},
    }


def accuracy_and_f1(targets: Array, decisions: Array) -> dict[str, float]:
    """Accuracy and weighted F1 of class indices [rows], or of zeros and ones [rows, labels]: whole rows count."""
    return {
        "accuracy": float(accuracy_score(targets, decisions)),
        "f1": float(f1_score(targets, decisions, average="weighted", zero_division=0)),
    }
