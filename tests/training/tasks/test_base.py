"""Rows become one packed batch, whose targets stay beside their texts."""

import pytest
import torch
from sklearn.metrics import f1_score
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.training.tasks.base import accuracy_and_f1, pack_rows


def test_pack_rows_keeps_rows_and_targets_together() -> None:
    rows = [
        {"input_ids": [2, 5, 3], "token_type_ids": [0, 0, 1], "target": 1},
        {"input_ids": [2, 3], "token_type_ids": [0, 1], "target": 0},
    ]
    batch = pack_rows(rows, torch.int64, multiple=64)
    assert next(iter(batch)) == "labels"
    assert batch["labels"].tolist() == [1, 0] and batch["labels"].dtype == torch.int64
    assert batch["input_ids"][:5].tolist() == [2, 5, 3, 2, 3] and batch["input_ids"].shape == (64,)
    assert batch["token_type_ids"][:5].tolist() == [0, 0, 1, 0, 1]
    assert batch["sequence_ids"][:6].tolist() == [0, 0, 0, 1, 1, -1]
    assert pack_rows(rows, torch.float32, multiple=64)["labels"].dtype == torch.float32


def test_accuracy_and_weighted_f1() -> None:
    found = accuracy_and_f1(torch.tensor([0, 1, 1, 1]).numpy(), torch.tensor([0, 1, 1, 0]).numpy())
    want = f1_score([0, 1, 1, 1], [0, 1, 1, 0], average="weighted")
    assert found == {"accuracy": 0.75, "f1": pytest.approx(want)}
