"""The rows of an analysis, what a model answered to them, and those that fail alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.analysis.intervals import Values
from nopad.analysis.tagged_rows import kinds_of
from nopad.model.head import FloatArray, Head
from nopad.runtime.data.labelled import BadRow, LabelledTexts
from nopad.runtime.errors import InputFileError, UsageError
from nopad.runtime.model import Model
from nopad.runtime.types import Failure, Text, in_one

IntArray = npt.NDArray[np.int64]
Show = Callable[..., None]  # message, done, total


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Texts with their labels, numbers and kept columns, all in one order."""

    inputs: tuple[Text, ...]
    targets: Values  # [rows, num_labels]
    lines: tuple[int, ...]
    kept: tuple[Mapping[str, Any], ...]

    def texts(self) -> list[str]:
        """The texts as one each; of a pair, the two on lines of their own."""
        return [in_one(text) for text in self.inputs]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one model answered to all rows, with its labels in the order of the rows' targets."""

    head: Head
    logits: FloatArray  # [rows, num_labels]
    tokens: IntArray  # [rows], of the whole text
    used: IntArray  # [rows], that were read

    @property
    def scores(self) -> Values:
        """The labels' scores, [rows, num_labels]."""
        return self.head.probabilities(self.logits).astype(np.float64)


def ask(models: Sequence[Model], read: LabelledTexts, show: Show) -> tuple[Rows, list[Answers], list[BadRow]]:
    """The rows that every model has answered, their answers, and the rows that one of them could not answer."""
    assert read.targets is not None, "the caller has looked"
    found = [
        collected(model.predict(iter(read.inputs), return_logits=True, on_error="return"), len(read.texts), show)
        for model in models
    ]
    good, bad = answered_by_all(found, read.lines)
    rows = Rows(
        inputs=tuple(read.inputs[place] for place in good),
        targets=read.targets[good],
        lines=tuple(read.lines[place] for place in good),
        kept=tuple(read.kept[place] for place in good),
    )
    names = models[0].labels
    return (
        rows,
        [_ordered(model, [each[n] for n in good], names) for model, each in zip(models, found, strict=True)],
        bad,
    )


def check_alike(first: Head, second: Head) -> None:
    """Refuse two models that cannot be held to the same labels. Raises `UsageError`."""
    mine, other = (head.problem_type or head.task for head in (first, second))
    if (first.task, mine) != (second.task, other):
        raise UsageError(f"the two bundles do not answer the same question: {mine} and {other}")
    tags = first.task == "token-classification"
    ours, theirs = (set(kinds_of(head.labels) if tags else head.labels) for head in (first, second))
    if ours != theirs:
        only, back = (", ".join(sorted(names)) or "none" for names in (ours - theirs, theirs - ours))
        raise UsageError(
            f"the two bundles have other labels: only the first has {only}; only the second has {back}; analyze "
            "each alone, or export both with the same names"
        )


def collected(answers: Iterable[Any], count: int, show: Show) -> list[Any]:
    """The answers of one model to `count` texts, which are shown as they come."""
    found: list[Any] = []
    for answer in answers:
        found.append(answer)
        if len(found) % 32 == 1:
            show("answering the texts", len(found), count)
    return found


def answered_by_all(found: Sequence[Sequence[Any]], lines: Sequence[int]) -> tuple[list[int], list[BadRow]]:
    """Which rows every model has answered, and the others with the reason. Raises `InputFileError` where all failed."""
    failed: dict[int, str] = {}
    for answers in found:
        failed |= {place: str(answer.error) for place, answer in enumerate(answers) if isinstance(answer, Failure)}
    good = [place for place in range(len(lines)) if place not in failed]
    bad = [BadRow(lines[place], f"row {lines[place]}", reason) for place, reason in sorted(failed.items())]
    if not good:
        raise InputFileError(f"none of the {len(lines)} texts could be answered; the first: {bad[0].reason}")
    return good, bad


def _ordered(model: Model, answers: Sequence[Any], names: Sequence[str]) -> Answers:
    """The answers with their labels in the order of `names`."""
    head = model.manifest.head
    order = [head.labels.index(name) for name in names] if head.has_labels else list(range(len(head.labels)))
    thresholds = None if head.thresholds is None else tuple(head.thresholds[place] for place in order)
    return Answers(
        head=dataclasses.replace(head, labels=tuple(names), thresholds=thresholds),
        logits=np.stack([answer.logits for answer in answers])[:, order],
        tokens=np.array([answer.tokens for answer in answers], dtype=np.int64),
        used=np.array([answer.tokens_used for answer in answers], dtype=np.int64),
    )
