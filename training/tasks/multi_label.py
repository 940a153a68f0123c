"""Multi-label classification: each text has any number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nopad.model.head import Head
from nopad.training.tasks.base import Array, FloatArray, accuracy_and_f1, pack_rows

_HEAD = Head(task="text-classification", problem_type="multi_label_classification")


class MultiLabel:
    """Targets are zeros and ones, float32 [rows, labels], as the logits are."""

    metric_names: Sequence[str] = ("accuracy", "f1")
    best_metric = "f1"
    greater_is_better = True

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        return pack_rows(rows, torch.float32, multiple=multiple)

    def loss(self, logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Binary cross-entropy; label smoothing has no effect."""
        return F.binary_cross_entropy_with_logits(logits, targets)

    def metrics(self, logits: FloatArray, targets: Array) -> dict[str, float]:
        """Accuracy (all labels of a text are right) and weighted F1."""
        return accuracy_and_f1(targets, _HEAD.decide(logits).astype(int))
