"""`--class-weights`: how much more the texts of some classes count in the loss than those of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.runtime.errors import UsageError
from nopad.training.labels import MULTI, REGRESSION, LabelColumn
from nopad.training.tasks.base import Task
from nopad.training.tasks.multi_label import MultiLabel
from nopad.training.tasks.ordinal import Ordinal
from nopad.training.tasks.registry import TASKS
from nopad.training.tasks.single_label import SingleLabel

BALANCED = "balanced"


def task_with_weights(
    column: LabelColumn, targets: npt.NDArray[Any], option: str | None, *, ordinal: bool = False
) -> Task:
    """The task that learns the column, its classes weighted as the option says; `targets` are of the training rows.

    `balanced` gives all classes the same part in the loss; or `a=1,b=2` names them, and the others have 1. Of several
    labels at once, a weight is that of the texts that have the label; balanced, it is how many lack it for each that
    has it. `ordinal`: the classes have an order. Raises `UsageError`.
    """
    single = Ordinal if ordinal else SingleLabel
    if option is None:
        return single() if ordinal else TASKS[column.problem_type]()
    if column.problem_type == REGRESSION:
        raise UsageError("--class-weights does not apply to a number to learn; leave it out")
    multi = column.problem_type == MULTI
    if option.strip() == BALANCED:
        rows = len(targets)
        counts = targets.sum(axis=0) if multi else np.bincount(targets, minlength=len(column.names))
        counts = np.maximum(counts, 1)  # no row at all: there is nothing to weigh
        weights = (rows - counts) / counts if multi else rows / counts
        weights = np.where(weights > 0, weights, 1.0)  # every row has the label
    else:
        weights = _named_weights(option, column.names)
    if multi:
        return MultiLabel(positive_weights=tuple(map(float, weights)))
    weights = weights / weights[targets].mean()  # so that learning rates mean the same as without weights
    return single(class_weights=tuple(map(float, weights)))


def _named_weights(option: str, names: Sequence[str]) -> npt.NDArray[np.float64]:
    weights = np.ones(len(names))
    given: set[int] = set()
    for item in option.split(","):
        name, _, value = item.rpartition("=")
        try:
            place, weight = names.index(name.strip()), float(value)
        except ValueError:
            raise UsageError(
                f"--class-weights {item!r}: expected {BALANCED}, or CLASS=WEIGHT,CLASS=WEIGHT with classes of "
                f"{', '.join(names[:10])}"
            ) from None
        if not 0 < weight < np.inf:
            raise UsageError(f"--class-weights {item!r}: a weight is a positive number")
        if place in given:
            raise UsageError(f"--class-weights {item!r}: the class has a weight already; leave one out")
        given.add(place)
        weights[place] = weight
    return weights
