"""The task for each problem type."""

from __future__ import annotations

from collections.abc import Callable

from nopad.model.head import ProblemType
from nopad.training.tasks.base import Task
from nopad.training.tasks.multi_label import MultiLabel
from nopad.training.tasks.regression import Regression
from nopad.training.tasks.single_label import SingleLabel

TASKS: dict[ProblemType, Callable[[], Task]] = {
    "single_label_classification": SingleLabel,
    "multi_label_classification": MultiLabel,
    "regression": Regression,
}
