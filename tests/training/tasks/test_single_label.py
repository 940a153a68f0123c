"""Single-label classification: class indices, cross-entropy with label smoothing, accuracy and F1."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.training.tasks.single_label import SingleLabel

TASK = SingleLabel()


def test_targets_are_class_indices() -> None:
    batch = TASK.collate([{"input_ids": [2, 3], "target": 1}], multiple=64)
    assert batch["labels"].tolist() == [1] and batch["labels"].dtype == torch.int64


def test_labels_are_smoothed() -> None:
    logits, targets = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0])
    chances = F.log_softmax(logits, -1)[0]
    want = -(0.7 * chances[0] + 0.1 * chances.sum())
    assert TASK.loss(logits, {"labels": targets}, label_smoothing=0.3).item() == pytest.approx(want.item())


def test_metrics() -> None:
    logits = np.array([[0, 1], [2, 1], [3, 0]], dtype=np.float32)
    assert TASK.metrics(logits, np.array([1, 0, 1]))["accuracy"] == pytest.approx(2 / 3)
