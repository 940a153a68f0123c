"""The user's own data through bundle and reference: logits, equal labels, accuracy lost."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from nopad.export.parity.accuracy import evaluate
from nopad.export.parity.bounds import Row, difference, scaled
from nopad.export.parity.trial import Trial


def labelled_data(trial: Trial) -> Iterator[Row]:
    """Rows over all texts of `trial.data`, where there are any; leaves the figures in `trial.evaluation`."""
    data, model, bounds = trial.data, trial.model, trial.bounds
    if data is None:
        return
    count = len(data.texts)
    start = time.perf_counter()
    rows_served = []
    for done, logits in enumerate(model.iter_logits(data.texts)):
        rows_served.append(logits)
        trial.progress("parity: the data through the bundle", done, count)
    middle = time.perf_counter()
    trained = trial.reference.batch_logits(
        data.texts,
        model.manifest.max_length,
        progress=lambda done: trial.progress("parity: the data through transformers", done, count),
    )
    end = time.perf_counter()
    served = np.stack(rows_served)
    case = f"{count} texts"
    yield Row.at_most("logits", case, difference(served, trained), scaled(bounds.logits, trained))
    if served.shape != trained.shape or model.task == "embeddings":
        return
    figures = evaluate(served, trained, model.manifest.head, data.targets, (middle - start, end - middle))
    trial.evaluation = figures
    if figures.agreement is not None:
        yield Row.at_least("labels", case, figures.agreement, bounds.agreement)
    if figures.accuracy is not None and figures.reference_accuracy is not None:
        yield Row.at_most("accuracy loss", case, figures.reference_accuracy - figures.accuracy, bounds.accuracy_loss)
