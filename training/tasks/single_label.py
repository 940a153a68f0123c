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

_HEAD = Head(task="text-classification", problem_type="single_label_classification")


@dataclass(frozen=True, kw_only=True)
class SingleLabel(Task):
    """Targets are class indices, int64 [rows]; logits [rows, classes].

    `class_weights`: how much a text of each class counts; their mean over the training rows is 1. A batch's loss is
    divided by its texts, not (as in PyTorch) by their weights, so that it does not matter which texts share a batch.
    """

    head: ClassVar[HeadTask] = "text-classification"
    metric_names: ClassVar[Sequence[str]] = ("accuracy", "f1", "macro_f1", "auc")
    best_metric: ClassVar[str] = "f1"

    class_weights: tuple[float, ...] | None = None

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        return pack_rows(rows, torch.int64, multiple=multiple)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """Cross-entropy."""
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        losses = F.cross_entropy(
            logits, batch[TARGETS], weight=weights, label_smoothing=label_smoothing, reduction="none"
        )
        return losses.mean()

    def imitate(self, logits: Tensor, batch: Mapping[str, Tensor], *, temperature: float) -> Tensor:
        """Kullback-Leibler divergence of softened classes, times the temperature squared (Hinton, arXiv:1503.02531)."""
        own, theirs = ((x.float() / temperature).log_softmax(-1) for x in (logits, batch[TEACHER]))
        return F.kl_div(own, theirs, reduction="batchmean", log_target=True) * temperature**2

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Accuracy, weighted and macro F1; the area under the ROC curve, of several classes one against the rest."""
        scores = _HEAD.probabilities(predictions)
        if scores.shape[-1] == 2:
            area = area_under_curve(targets, scores[:, 1])
        else:
            area = area_under_curve(targets[:, None] == range(scores.shape[-1]), scores)
        return {**decision_metrics(targets, _HEAD.best(predictions)), **area}
