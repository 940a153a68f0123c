"""The user's own data through bundle and reference: logits, equal labels, loss of accuracy."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nopad.export.parity.accuracy import evaluate
from nopad.export.parity.bounds import Row, difference, scaled
from nopad.export.parity.trial import Trial
from nopad.runtime.data.tagged import EntityPlace
from nopad.runtime.decode import own_entities
from nopad.runtime.entities import entity_scores
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import FloatArray


def labelled_data(trial: Trial) -> Iterator[Row]:
    """Rows over all texts of `trial.data`, where there are any; leaves the figures in `trial.evaluation`.

    For token classification, an answer is a token's: logits are [tokens of all texts, labels]. Where the texts have
    tags, bundle and reference get the F1 of their entities, too.
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
    if data.entities is not None:
        figures = dataclasses.replace(figures, **_entity_figures(trial, answers, reference_logits, data.entities))
    trial.evaluation = figures
    if figures.agreement is not None:
        yield Row.at_least("labels", case, figures.agreement, bounds.agreement)
    if figures.accuracy is not None and figures.reference_accuracy is not None:
        yield Row.at_most("accuracy loss", case, figures.reference_accuracy - figures.accuracy, bounds.accuracy_loss)


def _entity_figures(
    trial: Trial,
    answers: Sequence[FloatArray],
    reference_logits: FloatArray,
    true: Sequence[frozenset[EntityPlace]],
) -> dict[str, Any]:
    """F1 of the bundle's entities and of the reference's, both made of the tokens' labels as serving makes them.

    `answers`: the bundle's logits of each text; `reference_logits` are those of all texts, one after the other.
    """
    assert trial.data is not None, "of labelled data"
    head = trial.model.manifest.head
    encoded = [tokens for tokens in trial.model.encode(trial.data.inputs) if isinstance(tokens, Tokens)]

    def f1(logits: Sequence[FloatArray]) -> float:
        found = [
            {
                (entity.label, entity.start, entity.end)
                for entity in own_entities(head, tokens, head.probabilities(rows), head.best(rows))
            }
            for rows, tokens in zip(logits, encoded, strict=True)
        ]
        return entity_scores(found, true)["f1"]

    each = np.split(reference_logits, np.cumsum([len(rows) for rows in answers])[:-1])
    return {"entities": sum(map(len, true)), "f1": f1(answers), "reference_f1": f1(each)}
