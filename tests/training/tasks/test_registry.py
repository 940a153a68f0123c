"""Every problem type has a task, with the loss of transformers' own class and the decisions of `Head`."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from training_samples import CONFIG

from nopad.model.head import PROBLEM_TYPES, Head, ProblemType
from nopad.training.tasks.base import SMALLER_IS_BETTER
from nopad.training.tasks.registry import TASKS


def test_each_problem_type_has_its_task() -> None:
    assert tuple(TASKS) == PROBLEM_TYPES
    for task in TASKS.values():
        assert task().best_metric in task().metric_names
    assert {name: task().best_metric for name, task in TASKS.items()} == {
        "single_label_classification": "f1",
        "multi_label_classification": "f1",
        "regression": "mse",
    }
    assert "mse" in SMALLER_IS_BETTER and "f1" not in SMALLER_IS_BETTER


TARGETS: dict[ProblemType, list[Any]] = {
    "single_label_classification": [2, 0],
    "multi_label_classification": [[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]],
    "regression": [0.5, -3.0],
}


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_the_loss_is_that_of_transformers(problem_type: ProblemType) -> None:
    count = 1 if problem_type == "regression" else 3
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(**CONFIG, num_labels=count, problem_type=problem_type)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    rows = [{"input_ids": [2, 5, 3], "target": TARGETS[problem_type][0]},
            {"input_ids": [2, 7, 3], "target": TARGETS[problem_type][1]}]  # fmt: skip
    targets = TASKS[problem_type]().collate(rows, multiple=64)["labels"]
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([row["input_ids"] for row in rows]), labels=targets)
    ours = TASKS[problem_type]().loss(theirs.logits, {"labels": targets}, label_smoothing=0.0)
    assert ours.item() == pytest.approx(theirs.loss.item(), rel=1e-6)


def texts(labels: int) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    row = st.lists(st.floats(-50, 50, width=32), min_size=labels, max_size=labels)
    return st.lists(row, min_size=1, max_size=8).map(lambda rows: np.array(rows, dtype=np.float32))


@given(texts(3))
def test_metrics_are_of_the_labels_that_a_head_decides_on(logits: np.ndarray[Any, Any]) -> None:
    for problem_type in ("single_label_classification", "multi_label_classification"):
        decided = Head(task="text-classification", problem_type=problem_type).decide(logits)
        several = problem_type == "multi_label_classification"
        found = TASKS[problem_type]().metrics(logits, decided if several else decided.argmax(-1))
        assert set(found) | {"auc"} == set(TASKS[problem_type]().metric_names)  # undefined where a class is absent
        assert found["accuracy"] == 1.0
