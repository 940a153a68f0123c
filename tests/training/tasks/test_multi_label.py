"""Multi-label classification: zeros and ones, and a text is right if all of its labels are."""

import numpy as np
import pytest
import torch
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.training.tasks.multi_label import MultiLabel

TASK = MultiLabel()


def test_targets_are_zeros_and_ones() -> None:
    batch = TASK.collate([{"input_ids": [2, 3], "target": [0.0, 1.0]}], multiple=64)
    assert batch["labels"].tolist() == [[0, 1]] and batch["labels"].dtype == torch.float32


def test_nothing_is_smoothed() -> None:
    logits, targets = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 0.0]])
    losses = [TASK.loss(logits, {"labels": targets}, label_smoothing=smoothing).item() for smoothing in (0.0, 0.5)]
    assert losses[0] == losses[1]


def test_the_whole_row_must_be_right() -> None:
    logits = np.array([[1, -1], [-1, 1]], dtype=np.float32)
    assert TASK.metrics(logits, np.array([[1.0, 0.0], [1.0, 1.0]]))["accuracy"] == 0.5


def test_positive_weights_are_pytorchs() -> None:
    logits, targets = torch.tensor([[1.0, -2.0], [0.5, 0.3]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0, 0.5]))(logits, targets)
    ours = MultiLabel(positive_weights=(3.0, 0.5)).loss(logits, {"labels": targets}, label_smoothing=0.0)
    assert ours.item() == pytest.approx(theirs.item())
