"""Regression: numbers, and their mean squared error."""

import numpy as np
import pytest
import torch
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.training.tasks.regression import Regression

TASK = Regression()


def test_targets_are_numbers() -> None:
    batch = TASK.collate([{"input_ids": [2, 3], "target": 2.5}], multiple=64)
    assert batch["labels"].tolist() == [2.5] and batch["labels"].dtype == torch.float32


def test_loss_and_metric_are_the_mean_squared_error() -> None:
    logits, targets = np.array([[1.0], [3.0]], dtype=np.float32), np.array([0.0, 1.0], dtype=np.float32)
    assert TASK.metrics(logits, targets) == {"mse": 2.5}
    loss = TASK.loss(torch.tensor(logits), {"labels": torch.tensor(targets)}, label_smoothing=0.0)
    assert loss.item() == pytest.approx(2.5)
