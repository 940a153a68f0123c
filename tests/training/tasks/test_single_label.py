"""Single-label classification: class indices, cross-entropy with label smoothing, accuracy and F1."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
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


def test_the_area_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    for classes in (2, 4):
        logits, targets = draw.normal(size=(50, classes)).astype(np.float32), draw.integers(classes, size=50)
        chances = torch.tensor(logits).softmax(-1).numpy()
        wanted = (
            roc_auc_score(targets, chances[:, 1])
            if classes == 2
            else np.mean([roc_auc_score(targets == label, chances[:, label]) for label in range(classes)])
        )
        assert TASK.metrics(logits, targets)["auc"] == pytest.approx(wanted)


def test_a_weighted_text_counts_as_often() -> None:
    """Over a whole batch of mean weight 1, the loss is PyTorch's; and it does not matter which texts share a batch."""
    logits, targets = torch.tensor([[1.0, 2.0], [0.5, 0.1], [3.0, 0.0], [0.2, 0.4]]), torch.tensor([0, 0, 0, 1])
    task = SingleLabel(class_weights=(2 / 3, 2.0))
    whole = task.loss(logits, {"labels": targets}, label_smoothing=0.0)
    theirs = torch.nn.CrossEntropyLoss(weight=torch.tensor([2 / 3, 2.0]))(logits, targets)
    assert whole.item() == pytest.approx(theirs.item())
    halves = [task.loss(logits[half], {"labels": targets[half]}, label_smoothing=0.0) for half in ([0, 1], [2, 3])]
    assert sum(halves).item() / 2 == pytest.approx(whole.item())  # type: ignore[union-attr]
