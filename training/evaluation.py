"""What an evaluation says beyond its metrics: which labels are taken for which, and how true the probabilities are."""

from __future__ import annotations

from typing import Any

import numpy as np
from accelerate.utils import gather_object
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from transformers import TrainerCallback, TrainingArguments

from nopad.model.head import Head
from nopad.model.reliability import calibration_error, reliability
from nopad.training.tasks.base import Array, FloatArray

MOST_CLASSES = 20  # a matrix of more is no table
_MOST_MISTAKES = 10


def details(head: Head, predictions: FloatArray, targets: Array) -> dict[str, Any]:
    """Plain values, for JSON: `rows`; of texts with labels also `ece`, `labels`, and of one label each `confusion`.

    `predictions` are logits [rows, num_labels], `targets` class indices [rows], or zeros and ones as the logits.
    `confusion` [true][chosen] is left out beyond `MOST_CLASSES`; `mistakes` are the most frequent [true, chosen, rows].
    """
    result: dict[str, Any] = {"rows": len(targets)}
    if head.task != "text-classification" or not head.has_labels:
        return result
    count = len(head.labels)
    truth = targets if head.multi_label else np.eye(count)[targets]
    result["ece"] = calibration_error(reliability(predictions, truth.astype(np.float64), head))
    if head.multi_label:
        decided = head.decide(predictions).astype(int)
        places = range(count) if count > 1 else [1]  # scikit-learn takes a single column for two classes, 0 and 1
        figures = precision_recall_fscore_support(truth, decided, labels=places, zero_division=0)
    else:
        chosen = head.best(predictions)
        figures = precision_recall_fscore_support(targets, chosen, labels=range(count), zero_division=0)
        matrix = confusion_matrix(targets, chosen, labels=range(count))
        if count <= MOST_CLASSES:
            result["confusion"] = matrix.tolist()
        wrong = matrix - np.diag(np.diag(matrix))
        order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_MISTAKES]
        pairs = [(int(place) // count, int(place) % count) for place in order]
        result["mistakes"] = [[true, taken, int(wrong[true, taken])] for true, taken in pairs if wrong[true, taken]]
    names = ("precision", "recall", "f1", "rows")
    result["labels"] = [
        {"label": label, **dict(zip(names, map(float, row), strict=True))}
        for label, row in zip(head.labels, np.stack(figures).T, strict=True)
    ]
    return result


class LossOfItems:
    """The mean loss of an evaluation over all items, each counted once, however many processes share them.

    So that all processes have as many batches, all full, accelerate goes on with the first of the `rows` rows of the
    data where they end.
    """

    def __init__(self, settings: TrainingArguments, *, rows: int) -> None:
        self._size, self._rows = settings.per_device_eval_batch_size, rows
        self._process, self._processes = settings.process_index, settings.world_size
        self._batches: list[tuple[float, int]] = []  # of this process: the sum over the items, the items

    def own_rows(self) -> range:
        """The rows of this process's next batch without those that it repeats, its first ones; perhaps none."""
        begin = self._size * (len(self._batches) * self._processes + self._process)
        return range(begin, min(begin + self._size, self._rows))

    def add(self, mean: float, items: int) -> None:
        """Count a batch of this process: the mean loss of its own rows' items."""
        self._batches.append((mean * items, items))

    def mean(self) -> float:
        """Of all processes, which must all ask; 0 without items."""
        total, items = map(sum, zip(*gather_object(self._batches), strict=True))
        return float(total / max(items, 1))


class EvaluateAtTheEnd(TrainerCallback):
    """With evaluations every so many steps, the last step has one, too. transformers 4 would only save it."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the last step evaluated and saved."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
