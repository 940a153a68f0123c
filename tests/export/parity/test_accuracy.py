"""Accuracy, F1 and squared error of two models on labelled rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from nopad.export.parity.accuracy import evaluate, weighted_f1
from nopad.model.head import Head

LOGITS = np.array([[2, 1], [-1, 1], [3, -2], [0.5, 1]], dtype=np.float32)


def test_weighted_f1_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        truth, guess = (draw.integers(0, 2, (9, 4)).astype(np.float64) for _ in range(2))
        want = f1_score(truth, guess, average="weighted", zero_division=0)
        assert weighted_f1(truth, guess) == pytest.approx(want, abs=1e-6)


def test_the_evaluation_of_a_classifier_is_of_its_decisions() -> None:
    head = Head(task="text-classification", problem_type="single_label_classification", labels=("a", "b"))
    truth = np.eye(2)[[0, 1, 1, 1]]
    found = evaluate(LOGITS, -LOGITS, head, truth, (1.0, 2.0))
    assert (found.rows, found.agreement, found.accuracy, found.reference_accuracy) == (4, 0.0, 0.75, 0.25)
    assert found.label_mix == {"a": 0.5, "b": 0.5} and found.mse is None
    assert found.f1 == pytest.approx(f1_score([0, 1, 1, 1], [0, 1, 0, 1], average="weighted"))
    alone = evaluate(LOGITS, LOGITS, head, None, (1.0, 2.0))
    assert (alone.agreement, alone.accuracy, alone.f1) == (1.0, None, None)
    assert (alone.seconds, alone.reference_seconds) == (1.0, 2.0)


def test_all_labels_of_a_row_must_be_right() -> None:
    head = Head(task="text-classification", problem_type="multi_label_classification", labels=("a", "b"))
    found = evaluate(LOGITS, LOGITS, head, np.array([[1, 1], [0, 0], [1, 0], [1, 0]], dtype=float), (1.0, 1.0))
    assert found.accuracy == 0.5 and found.label_mix == {"a": 0.75, "b": 0.75}


def test_a_regression_has_a_squared_error_and_nothing_else() -> None:
    head = Head(task="text-classification", problem_type="regression", labels=("stars",))
    found = evaluate(LOGITS[:, :1], LOGITS[:, :1] + 1, head, LOGITS[:, :1].astype(float), (1.0, 1.0))
    assert (found.mse, found.reference_mse) == (0.0, 1.0)
    assert (found.agreement, found.accuracy, found.label_mix) == (None, None, {})
