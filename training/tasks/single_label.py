"""Single-label classification: each text has one class of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nopad.model.head import Head
from nopad.training.tasks.base import Array, FloatArray, accuracy_and_f1, pack_rows

_HEAD = Head(task="text-classification", problem_type="single_label_classification")


class SingleLabel:
    """Targets are class indices, int64 [rows]; logits [rows, classes]."""

    metric_names: Sequence[str] = ("accuracy", "f1")
    best_metric = "f1"
    greater_is_better = True

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        return pack_rows(rows, torch.int64, multiple=multiple)

    def loss(self, logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    def metrics(self, logits: FloatArray, targets: Array) -> dict[str, float]:
        """Accuracy and weighted F1."""
        return accuracy_and_f1(targets, _HEAD.best(logits))
