"""Rows become one packed batch, whose targets stay beside their texts."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from training_samples import CONFIG  # noqa: F401  (skips this module where packages for training are missing)

from nopad.training.tasks.base import area_under_curve, decision_metrics, pack_rows


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


def test_f1_weighs_classes_by_rows_or_alike() -> None:
    found = decision_metrics(torch.tensor([0, 1, 1, 1]).numpy(), torch.tensor([0, 1, 1, 0]).numpy())
    wanted = {average: f1_score([0, 1, 1, 1], [0, 1, 1, 0], average=average) for average in ("weighted", "macro")}
    assert found == {
        "accuracy": 0.75,
        "f1": pytest.approx(wanted["weighted"]),
        "macro_f1": pytest.approx(wanted["macro"]),
    }
    assert wanted["weighted"] != wanted["macro"]


def test_labels_that_all_rows_or_none_have_are_left_out_of_the_area() -> None:
    truths, scores = (
        np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]]),
        np.array([[0.4, 0.1, 0.5], [0.6, 0.2, 0.5], [0.7, 0.3, 0]]),
    )
    assert area_under_curve(truths, scores.astype(np.float32)) == {"auc": 0.5}
    assert area_under_curve(truths[:, 1:], scores[:, 1:].astype(np.float32)) == {}
