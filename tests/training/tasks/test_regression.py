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
    assert TASK.metrics(logits, targets)["mse"] == 2.5
    loss = TASK.loss(torch.tensor(logits), {"labels": torch.tensor(targets)}, label_smoothing=0.0)
    assert loss.item() == pytest.approx(2.5)


def test_correlations_are_those_of_ranks_and_of_numbers() -> None:
    found = TASK.metrics(np.array([[1.0], [2.0], [100.0]], dtype=np.float32), np.array([0.0, 5.0, 6.0]))
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson"] == pytest.approx(np.corrcoef([1, 2, 100], [0, 5, 6])[0, 1])


def test_equal_numbers_have_no_correlation() -> None:
    assert set(TASK.metrics(np.ones((3, 1), dtype=np.float32), np.arange(3.0))) == {"mse"}
