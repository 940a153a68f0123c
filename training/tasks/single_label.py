"""Single-label classification: each text has one class of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nopad.model.head import Head
from nopad.model.head import Task as HeadTask
from nopad.training.tasks.base import TARGETS, Array, FloatArray, Task, accuracy_and_f1, pack_rows

_HEAD = Head(task="text-classification", problem_type="single_label_classification")


@dataclass(frozen=True, kw_only=True)
class SingleLabel(Task):
    """Targets are class indices, int64 [rows]; logits [rows, classes]."""

    head: ClassVar[HeadTask] = "text-classification"
    metric_names: ClassVar[Sequence[str]] = ("accuracy", "f1")
    best_metric: ClassVar[str] = "f1"
    greater_is_better: ClassVar[bool] = True

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        return pack_rows(rows, torch.int64, multiple=multiple)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(logits, batch[TARGETS], label_smoothing=label_smoothing)

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Accuracy and weighted F1."""
        return accuracy_and_f1(targets, _HEAD.best(predictions))
