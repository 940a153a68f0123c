"""Details of an evaluation: of many classes, of several labels, of none."""

import numpy as np
import pytest
import training_samples  # noqa: F401  (skips the module where training cannot run)

from nopad.model.head import Head
from nopad.training.evaluation import MOST_CLASSES, details
from nopad.training.tasks.multi_label import MultiLabel

NAMES = tuple(f"c{n}" for n in range(MOST_CLASSES + 5))


def test_many_classes_have_their_most_frequent_mistakes() -> None:
    head = Head(task="text-classification", labels=NAMES, problem_type="single_label_classification")
    targets = np.repeat(np.arange(len(NAMES)), 4)
    chosen = targets.copy()
    chosen[:3] = 7  # three of class 0
    chosen[4] = 0
    predictions = 10 * np.eye(len(NAMES), dtype=np.float32)[chosen]
    got = details(head, predictions, targets)
    assert "confusion" not in got and got["mistakes"] == [[0, 7, 3], [1, 0, 1]]
    assert got["rows"] == len(targets) and got["labels"][0]["recall"] == pytest.approx(1 / 4)
    assert got["ece"] == pytest.approx(4 / len(targets), abs=0.01)


def test_several_labels_at_once() -> None:
    head = Head(task="text-classification", labels=("a", "b"), problem_type="multi_label_classification")
    targets = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], np.float32)
    predictions = np.array([[5, -5], [5, -5], [-5, -5], [5, 5]], np.float32)
    got = details(head, predictions, targets)
    assert "confusion" not in got and "mistakes" not in got
    assert [(one["label"], one["precision"], one["recall"], one["rows"]) for one in got["labels"]] == [
        ("a", pytest.approx(2 / 3), 1.0, 2.0),
        ("b", 1.0, 0.5, 2.0),
    ]


def test_one_label_that_texts_have_or_not() -> None:
    head = Head(task="text-classification", labels=("a",), problem_type="multi_label_classification")
    targets = np.array([[1], [1], [0], [0], [0]], np.float32)
    predictions = np.array([[5], [-5], [-5], [5], [5]], np.float32)
    (got,) = details(head, predictions, targets)["labels"]
    assert got == {
        "label": "a",
        "precision": pytest.approx(1 / 3),
        "recall": 0.5,
        "f1": pytest.approx(0.4),
        "rows": 2.0,
    }
    metrics = MultiLabel().metrics(predictions, targets)
    assert metrics["accuracy"] == 0.4 and metrics["f1"] == metrics["macro_f1"] == pytest.approx(0.4)


def test_a_number_to_learn_has_no_labels() -> None:
    head = Head(task="text-classification", labels=("LABEL_0",), problem_type="regression")
    assert details(head, np.zeros((3, 1), np.float32), np.ones(3)) == {"rows": 3}
