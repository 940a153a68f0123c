"""Regression: each text has a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from nopad.model.head import Task as HeadTask
from nopad.training.tasks.base import TARGETS, TEACHER, Array, FloatArray, Task, pack_rows


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Targets are numbers, float32 [rows]; logits [rows, 1]."""

    head: ClassVar[HeadTask] = "text-classification"
    metric_names: ClassVar[Sequence[str]] = ("mse", "pearson", "spearman")
    best_metric: ClassVar[str] = "mse"

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        return pack_rows(rows, torch.float32, multiple=multiple)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """Mean squared error; label smoothing has no effect."""
        return F.mse_loss(logits.squeeze(-1), batch[TARGETS])

    def imitate(self, logits: Tensor, batch: Mapping[str, Tensor], *, temperature: float) -> Tensor:
        """Mean squared error of the logits; the temperature has no effect."""
        return F.mse_loss(logits.float(), batch[TEACHER])

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Mean squared error; Pearson's and Spearman's correlation, unless all targets or all predictions are equal."""
        numbers = predictions.squeeze(-1)
        metrics = {"mse": float(np.mean((numbers - targets) ** 2))}
        if np.ptp(numbers) and np.ptp(targets):
            metrics["pearson"] = float(pearsonr(numbers, targets).statistic)
            metrics["spearman"] = float(spearmanr(numbers, targets).statistic)
        return metrics
