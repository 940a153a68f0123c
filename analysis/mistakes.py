"""The most confident mistakes, which words led to them, and rows whose given label is likely wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nopad.analysis.answers import Answers, Rows, Show
from nopad.analysis.intervals import Values
from nopad.analysis.noise import IntArray, noise_share, suspects
from nopad.runtime.model import Model
from nopad.runtime.types import By, Explanation, Failure, Text

_UNITS: tuple[By, ...] = ("word", "sentence")  # those that a budget suffices for: the first of them


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A row that is answered wrongly.

    `label` is the label that is at fault (the one that was given, or that is missing), `certainty` the probability of
    that decision. Of numbers, `label` is the number's name, `error` the answer less the truth.
    """

    line: int
    text: Text
    truth: str
    given: str
    label: str
    missed: bool = False  # the label was not given
    certainty: float | None = None
    error: float | None = None
    tokens: int
    used: int
    explanation: Explanation | None = None
    unexplained: str = ""  # why it has none


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A row whose label is likely wrong: probabilities of the label that it has, and of the one that is likely meant.

    Where a text may have several labels, `given` and `likely` are about a single one of them.
    """

    line: int
    text: Text
    given: str
    likely: str
    given_probability: float
    likely_probability: float


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Rows whose labels are likely wrong, the surest first, and which share of all labels is estimated to be."""

    suspects: int
    share: float
    lines: tuple[int, ...]  # of all suspects, the surest first
    shown: tuple[Suspect, ...]
    thresholds: dict[str, float | None]  # of each label; None where no row has it


def named(row: Values, names: Sequence[str]) -> str:
    """Decided labels, zeros and ones, as words."""
    return ", ".join(name for name, has in zip(names, row, strict=True) if has) or "none"


def mistakes(rows: Rows, answers: Answers, most: int) -> tuple[Mistake, ...]:
    """The wrong decisions that are surest of themselves, one of a row; of numbers, those that are farthest off."""
    head, scores, targets = answers.head, answers.scores, rows.targets
    if head.has_labels:
        decided = head.decide(answers.logits)
        if head.multi_label:
            certainty = np.where(decided == targets, -1.0, np.where(decided == 1, scores, 1 - scores))
        else:
            certainty = np.where((decided == 1) & (targets == 0), scores, -1.0)
    else:
        certainty, decided = np.abs(scores - targets), scores
    order, found = _worst(certainty, most)
    label = certainty.argmax(axis=1)
    return tuple(
        Mistake(
            line=rows.lines[row],
            text=rows.inputs[row],
            truth=named(targets[row], head.labels) if head.has_labels else f"{targets[row, label[row]]:g}",
            given=named(decided[row], head.labels) if head.has_labels else f"{scores[row, label[row]]:.4g}",
            label=head.labels[label[row]],
            missed=bool(head.has_labels and targets[row, label[row]]),
            certainty=float(found[row]) if head.has_labels else None,
            error=None if head.has_labels else float((scores - targets)[row, label[row]]),
            tokens=int(answers.tokens[row]),
            used=int(answers.used[row]),
        )
        for row in order
    )


def _worst(values: Values, most: int) -> tuple[IntArray, Values]:
    """The rows with the largest values, those below 0 left out, and each row's largest."""
    largest = values.max(axis=1)
    order = np.argsort(-largest, kind="stable")[:most]
    return order[largest[order] >= 0], largest


def explain(
    model: Model, found: Sequence[Mistake], most: int, budget: int, show: Show, name: str = ""
) -> tuple[Mistake, ...]:
    """The mistakes, the first `most` of them with what each word, or each sentence of a long text, did (occlusion)."""
    explained = []
    for number, mistake in enumerate(found):
        if number < most:
            show(f"explaining mistakes{name}", number, min(most, len(found)))
            mistake = _explained(model, mistake, budget)
        explained.append(mistake)
    return tuple(explained)


def _explained(model: Model, mistake: Mistake, budget: int) -> Mistake:
    reason = ""
    for by in _UNITS:
        (answer,) = model.explain([mistake.text], label=mistake.label, by=by, budget=budget, on_error="return")
        if not isinstance(answer, Failure):
            return replace(mistake, explanation=answer)
        reason = str(answer.error)
    return replace(mistake, unexplained=reason)


def noise(rows: Rows, answers: Answers, most: int) -> Noise | None:
    """Confident learning on these rows; None for numbers, and for a model with a single label that all texts have.

    Of several labels each is a question of its own, yes or no.
    """
    head, scores = answers.head, answers.scores
    if not head.has_labels or (len(head.labels) < 2 and not head.multi_label):
        return None
    if not head.multi_label:
        return _noise_of_one(rows, scores, head.labels, most)
    return _noise_of_several(rows, scores, head.labels, most)


def _noise_of_one(rows: Rows, scores: Values, names: Sequence[str], most: int) -> Noise:
    given = rows.targets.argmax(axis=1)
    found = suspects(scores, given)
    shown = [
        Suspect(
            line=rows.lines[row],
            text=rows.inputs[row],
            given=names[given[row]],
            likely=names[likely],
            given_probability=float(scores[row, given[row]]),
            likely_probability=float(scores[row, likely]),
        )
        for row, likely in zip(found.rows[:most], found.likely[:most], strict=True)
    ]
    return Noise(
        suspects=len(found.rows),
        share=noise_share(found, given),
        lines=tuple(rows.lines[row] for row in found.rows),
        shown=tuple(shown),
        thresholds=_finite(names, found.thresholds),
    )


def _noise_of_several(rows: Rows, scores: Values, names: Sequence[str], most: int) -> Noise:
    every: list[tuple[float, int, Suspect]] = []
    shares, thresholds = [], np.full(len(names), np.inf)
    for label, name in enumerate(names):
        given = rows.targets[:, label].astype(np.int64)
        both = np.stack((1 - scores[:, label], scores[:, label]), axis=1)
        found = suspects(both, given)
        shares.append(noise_share(found, given))
        thresholds[label] = found.thresholds[1]
        for row, likely in zip(found.rows, found.likely, strict=True):
            said = [f"{'' if has else 'not '}{name}" for has in (given[row], likely)]
            suspect = Suspect(
                line=rows.lines[row],
                text=rows.inputs[row],
                given=said[0],
                likely=said[1],
                given_probability=float(both[row, given[row]]),
                likely_probability=float(both[row, likely]),
            )
            every.append((suspect.given_probability - suspect.likely_probability, int(row), suspect))
    every.sort(key=lambda one: one[:2])
    return Noise(
        suspects=len(every),
        share=float(np.mean(shares)),
        lines=tuple(dict.fromkeys(suspect.line for _, _, suspect in every)),
        shown=tuple(suspect for _, _, suspect in every[:most]),
        thresholds=_finite(names, thresholds),
    )


def _finite(names: Sequence[str], thresholds: npt.NDArray[np.float64]) -> dict[str, float | None]:
    return {name: float(t) if np.isfinite(t) else None for name, t in zip(names, thresholds, strict=True)}
