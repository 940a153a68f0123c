"""The user's own data through bundle and reference: logits, equal labels, loss of accuracy."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from nopad.export.parity.accuracy import evaluate
from nopad.export.parity.bounds import Row, difference, scaled
from nopad.export.parity.trial import Trial


def labelled_data(trial: Trial) -> Iterator[Row]:
    """Rows over all texts of `trial.data`, where there are any; leaves the figures in `trial.evaluation`.

    For token classification, an answer is a token's: logits are [tokens of all texts, labels].
    """
    data, model, bounds = trial.data, trial.model, trial.bounds
    if data is None:
        return
    texts = data.inputs
    count = len(texts)
    start = time.perf_counter()
    answers = []
    for done, logits in enumerate(model.iter_logits(texts)):
        answers.append(logits)
        trial.progress("parity: the data through the bundle", done, count)
    middle = time.perf_counter()
    reference_logits = trial.reference.batch_logits(
        texts,
        model.manifest.max_length,
        progress=lambda done: trial.progress("parity: the data through transformers", done, count),
    )
    end = time.perf_counter()
    join = np.concatenate if model.task == "token-classification" else np.stack
    bundle_logits = join(answers)
    case = f"{count} texts"
    yield Row.at_most(
        "logits", case, difference(bundle_logits, reference_logits), scaled(bounds.logits, reference_logits)
    )
    judged = model.task in ("text-classification", "token-classification")
    if bundle_logits.shape != reference_logits.shape or not judged:
        return
    figures = evaluate(
        bundle_logits, reference_logits, model.manifest.head.uncalibrated, data.targets, (middle - start, end - middle)
    )
    trial.evaluation = figures
    if figures.agreement is not None:
        yield Row.at_least("labels", case, figures.agreement, bounds.agreement)
    if figures.accuracy is not None and figures.reference_accuracy is not None:
        yield Row.at_most("accuracy loss", case, figures.reference_accuracy - figures.accuracy, bounds.accuracy_loss)
