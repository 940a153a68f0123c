"""Ordinal classification: each text has one class of several that have an order, such as stars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from nopad.training.tasks.base import TARGETS, Array, FloatArray
from nopad.training.tasks.single_label import SingleLabel


@dataclass(frozen=True, kw_only=True)
class Ordinal(SingleLabel):
    """As single-label classification, but a class nearby is a smaller mistake than one far away.

    The head stays a softmax over classes, so what is exported and served is an ordinary classifier.
    """

    metric_names: ClassVar[Sequence[str]] = ("qwk", "mae", *SingleLabel.metric_names)
    best_metric: ClassVar[str] = "qwk"

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], *, label_smoothing: float) -> Tensor:
        """Cross-entropy with soft targets, which fall off with the distance from the class: softmax(-|i - class|).

        SORD: R. Diaz and A. Marathe, "Soft Labels for Ordinal Regression", CVPR 2019. Label smoothing has no effect.
        """
        classes = torch.arange(logits.shape[-1], device=logits.device)
        distance = (classes - batch[TARGETS].unsqueeze(-1)).abs()
        losses = F.cross_entropy(logits, (-distance.to(logits.dtype)).softmax(-1), reduction="none")
        if self.class_weights is not None:
            losses = losses * logits.new_tensor(self.class_weights)[batch[TARGETS]]
        return losses.mean()

    def metrics(self, predictions: FloatArray, targets: Array) -> dict[str, float]:
        """Those of single-label classification, quadratic weighted kappa, and by how many classes answers are wrong.

        Kappa is left out where all targets are one class: it is 0 then, or undefined, whatever the answers are.
        """
        decisions = predictions.argmax(-1)
        ordinal = {"mae": float(np.abs(decisions - targets).mean())}
        if np.ptp(targets):
            classes = range(predictions.shape[-1])  # those that are absent count in the distances, too
            ordinal["qwk"] = float(cohen_kappa_score(targets, decisions, labels=classes, weights="quadratic"))
        return {**ordinal, **super().metrics(predictions, targets)}
