"""Multi-label classification: each text has any number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nopad.model.head import Head
from nopad.model.head import Task as HeadTask
from nopad.training.tasks.base import (
    TARGETS,
    TEACHER,
    Array,
    FloatArray,
    Task,
    area_under_curve,
    decision_metrics,
    pack_rows,
)

_HEAD = Head(task="text-classification", problem_type="multi_label_classification")


@dataclass(frozen=True, kw_only=True)
class MultiLabel(Task):
    """Targets are zeros and ones, float32 [rows, labels], as the logits are.

    `positive_weights`: how much it counts, for each label, that a text has it (PyTorch's `pos_weight`).
    """

    head: ClassVar[HeadTask] = "text-classification"
    metric_names: ClassVar[Sequence[str]] = ("accuracy", "f1", "macro_f1", "auc")
    best_metric: ClassVar[str] = "f1"

    positive_weights: tuple[float, ...] | None = None

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        return pack_rows(rows, torch.float32, multiple=multiple)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """Binary cross-entropy; label smoothing has no effect."""
        weights = None if self.positive_weights is None else logits.new_tensor(self.positive_weights)
        return F.binary_cross_entropy_with_logits(logits, batch[TARGETS], pos_weight=weights)

    def imitate(self, logits: Tensor, batch: Mapping[str, Tensor], *, temperature: float) -> Tensor:
        """Binary cross-entropy with softened labels, times the temperature squared."""
        softened = (batch[TEACHER].float() / temperature).sigmoid()
        return F.binary_cross_entropy_with_logits(logits.float() / temperature, softened) * temperature**2

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Accuracy (all labels of a text are right), weighted and macro F1, the mean area under the ROC curve."""
        return {
            **decision_metrics(targets, _HEAD.decide(predictions).astype(int)),
            **area_under_curve(targets, predictions),
        }
