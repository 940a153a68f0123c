"""Regression: each text has a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nopad.training.tasks.base import Array, FloatArray, pack_rows


class Regression:
    """Targets are numbers, float32 [rows]; logits [rows, 1]."""

    metric_names: Sequence[str] = ("mse",)
    best_metric = "mse"
    greater_is_better = False

    def collate(self, rows: Sequence[Mapping[str, Any]], *, multiple: int) -> dict[str, Tensor]:
        """See `Task.collate`."""
        return pack_rows(rows, torch.float32, multiple=multiple)

    def loss(self, logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Mean squared error; label smoothing has no effect."""
        return F.mse_loss(logits.squeeze(-1), targets)

    def metrics(self, logits: FloatArray, targets: Array) -> dict[str, float]:
        """Mean squared error."""
        return {"mse": float(np.mean((logits.squeeze(-1) - targets) ** 2))}
