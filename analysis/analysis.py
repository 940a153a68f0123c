"""One or two models, labelled rows, perhaps training rows -> everything that a page and a JSON object show."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nopad.analysis.answers import Answers, IntArray, Rows, Show, ask
from nopad.analysis.comparison import Comparison, compare
from nopad.analysis.groups import Group, Measure, by_length, by_value, scored
from nopad.analysis.intervals import Estimate, wilson
from nopad.analysis.mistakes import Mistake, Noise, explain, mistakes, named, noise
from nopad.analysis.numbers import NumberFigures, mean_error, number_figures
from nopad.analysis.overlap import Overlap, Side, find_overlap
from nopad.analysis.scores import Confusion, LabelScore, confusion_matrix, confusions, label_scores, macro_f1
from nopad.analysis.tagged_rows import TaggedRows
from nopad.analysis.tags import TagFigures
from nopad.model.head import Head
from nopad.model.reliability import Bin, reliability
from nopad.runtime.calibration import Figures, figures
from nopad.runtime.data.labelled import BadRow, LabelledTexts
from nopad.runtime.errors import InputFileError, UsageError
from nopad.runtime.explain.page import explained
from nopad.runtime.model import Model
from nopad.runtime.types import Explanation, in_one

_POINTS = 1000  # of a plot of answers against the truth


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is looked at beyond the figures, and how much of it is shown."""

    slices: tuple[str, ...] = ()  # columns
    rows: int = 20  # of each table of texts
    explain: int = 5  # mistakes with attributions
    budget: int = 128  # runs for one of them


@dataclass(frozen=True, kw_only=True)
class Classes:
    """How well labels are told. `accuracy` is the share of rows with exactly the true labels."""

    accuracy: Estimate
    macro_f1: Estimate | None
    calibration: Figures | None  # None where scores are no probabilities
    bins: tuple[Bin, ...]
    labels: tuple[LabelScore, ...]
    confusion: tuple[tuple[int, ...], ...] | None  # of texts that have exactly one label
    confusions: tuple[Confusion, ...]
    noise: Noise | None


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """How far numbers are off, and some of them: truth and answer."""

    figures: NumberFigures
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one model makes of the rows."""

    bundle: str
    engine: str
    precision: str
    file: str
    max_length: int
    classes: Classes | None = None
    numbers: Numbers | None = None
    tags: TagFigures | None = None
    lengths: tuple[Group, ...]
    truncation: tuple[Group, ...]
    slices: dict[str, tuple[Group, ...]]
    mistakes: tuple[Mistake, ...]
    wrong: int | None  # rows; None for numbers


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All of it. `bad` are the rows that were left out, `unknown` those of them whose label no bundle knows."""

    rows: int
    labels: tuple[str, ...]
    results: tuple[Result, ...]
    comparison: Comparison | None
    repeats: Overlap
    train: Overlap | None
    train_rows: int
    train_bad: int
    bad: tuple[BadRow, ...]
    unknown: dict[str, tuple[int, ...]]  # label, or kind of entity -> the rows' numbers, the most frequent first


def check_task(head: Head) -> None:
    """Refuse a model whose answers cannot be held to labels here. Raises `UsageError`."""
    if head.task in ("text-classification", "token-classification"):
        return
    raise UsageError(
        "nopad analyze is for text-classification (one label, several, or numbers) and token-classification; this "
        f"bundle does {head.task}: nopad parity --data compares it with transformers, nopad bench measures it"
    )


def analyze(
    models: Sequence[Model], data: LabelledTexts, train: LabelledTexts | None, wanted: Wanted, show: Show
) -> Analysis:
    """Ask each model (one, or two to be compared) every row. Raises `InputFileError` where no row can be used."""
    heads = [model.manifest.head for model in models]
    _check(data, heads[0])
    rows, answers, failed = ask(models, data, show)
    measures = [_measure(rows, each) for each in answers]
    show("looking for texts that repeat")
    between, within, _ = find_overlap(_side(rows, heads[0]), _train_side(train, heads[0]), measures[0], wanted.rows)
    results = []
    for number, (model, each, measure) in enumerate(zip(models, answers, measures, strict=True)):
        show("counting", number, len(models))
        result = _result(model, rows, each, measure, wanted)
        name = f" of {'AB'[number]}" if len(models) > 1 else ""
        found = explain(model, result.mistakes, wanted.explain, wanted.budget, show, name)
        results.append(dataclasses.replace(result, mistakes=found))
    return analysis_of(
        len(rows.lines),
        heads[0].labels,
        results,
        compare(rows, answers[0], answers[1], wanted.rows) if len(answers) > 1 else None,
        repeats=within,
        between=between,
        train=train,
        bad=[*data.bad, *failed],
    )


def analysis_of(
    rows: int,
    labels: tuple[str, ...],
    results: Sequence[Result],
    comparison: Comparison | None,
    *,
    repeats: Overlap,
    between: Overlap | None,
    train: LabelledTexts | TaggedRows | None,
    bad: Sequence[BadRow],
) -> Analysis:
    """What was found, with the rows left out in order. `between`: the rows that are among `train`'s."""
    bad = sorted(bad, key=lambda row: row.line)
    return Analysis(
        rows=rows,
        labels=labels,
        results=tuple(results),
        comparison=comparison,
        repeats=repeats,
        train=between,
        train_rows=len(train.texts) if train is not None else 0,
        train_bad=len(train.bad) if train is not None else 0,
        bad=tuple(bad),
        unknown=_unknown_labels(bad),
    )


def result_of(
    model: Model,
    kept: Sequence[Mapping[str, Any]],
    tokens: IntArray,
    used: IntArray,
    measure: Measure,
    slices: Sequence[str],
    **own: Any,
) -> Result:
    """What all results of a model have: what answered, and the scores of groups of rows; `own` are the other fields."""
    whole = used >= tokens
    groups = {name: by_value([row.get(name) for row in kept]) for name in slices}
    return Result(
        bundle=str(model.bundle.path),
        engine=str(model.status().engine),
        precision=model.artifact.precision,
        file=model.artifact.file,
        max_length=model.manifest.max_length,
        lengths=scored(by_length(tokens), measure),
        truncation=scored({"read to the end": whole, "cut off": ~whole}, measure),
        slices={name: scored(masks, measure) for name, masks in groups.items()},
        **own,
    )


def _check(data: LabelledTexts, head: Head) -> None:
    if not data.texts and data.bad:
        raise InputFileError(
            f"none of {len(data.bad):,} rows can be used; {data.bad[0].place}: {data.bad[0].reason}. The model's "
            f"labels are {', '.join(head.labels)[:300]}: name the column with --label-field, or give its labels these "
            "names"
        )
    if data.targets is None:
        raise InputFileError("the data has no labels: name their column with --label-field")


def _measure(rows: Rows, answers: Answers) -> Measure:
    """The score of a group of rows."""
    if answers.head.has_labels:
        right = (answers.head.decide(answers.logits) == rows.targets).all(axis=1)
        return lambda mask: wilson(int(right[mask].sum()), int(mask.sum()))
    off = answers.scores - rows.targets
    return lambda mask: mean_error(off[mask])


def _result(model: Model, rows: Rows, answers: Answers, measure: Measure, wanted: Wanted) -> Result:
    head = answers.head
    right = (head.decide(answers.logits) == rows.targets).all(axis=1) if head.has_labels else None
    return result_of(
        model,
        rows.kept,
        answers.tokens,
        answers.used,
        measure,
        wanted.slices,
        classes=_classes(rows, answers, wanted) if head.has_labels else None,
        numbers=None if head.has_labels else _numbers(rows, answers),
        mistakes=mistakes(rows, answers, wanted.rows),
        wrong=None if right is None else int((~right).sum()),
    )


def _classes(rows: Rows, answers: Answers, wanted: Wanted) -> Classes:
    head, truth = answers.head, rows.targets
    decided = head.decide(answers.logits)
    probable = head.activation in (None, "Sigmoid", "Softmax")
    matrix = None if head.multi_label else confusion_matrix(truth, decided)
    return Classes(
        accuracy=wilson(int((decided == truth).all(axis=1).sum()), len(truth)),
        macro_f1=macro_f1(truth, decided),
        calibration=figures(answers.logits, truth, head) if probable else None,
        bins=reliability(answers.logits, truth, head) if probable else (),
        labels=label_scores(truth, decided, head.labels),
        confusion=matrix,
        confusions=confusions(matrix, head.labels, wanted.rows) if matrix else (),
        noise=noise(rows, answers, wanted.rows) if probable else None,
    )


def _numbers(rows: Rows, answers: Answers) -> Numbers:
    scores = answers.scores
    chosen = np.linspace(0, len(scores) - 1, min(len(scores), _POINTS)).astype(int)
    return Numbers(
        figures=number_figures(scores, rows.targets),
        points=tuple((float(rows.targets[row, 0]), float(scores[row, 0])) for row in chosen),
    )


def _side(rows: Rows, head: Head) -> Side:
    return Side(texts=rows.texts(), lines=rows.lines, labels=_labels(rows.targets, head))


def _train_side(train: LabelledTexts | None, head: Head) -> Side | None:
    if train is None:
        return None
    labels = [None] * len(train.texts) if train.targets is None else _labels(train.targets, head)
    return Side(texts=[in_one(text) for text in train.inputs], lines=train.lines, labels=labels)


def _labels(targets: Any, head: Head) -> list[str | None]:
    if head.has_labels:
        return [named(row, head.labels) for row in targets]
    return [", ".join(f"{value:g}" for value in row) for row in targets]


def _unknown_labels(bad: Sequence[BadRow]) -> dict[str, tuple[int, ...]]:
    """The labels that no bundle knows, and the numbers of their rows; the most frequent first."""
    counts = Counter(row.label for row in bad if row.label is not None)
    return {label: tuple(row.line for row in bad if row.label == label) for label, _ in counts.most_common()}


def as_json(value: Any) -> Any:
    """Records as JSON objects, an explanation as `nopad explain --json` writes it."""
    if isinstance(value, Explanation):
        return explained(value)
    if isinstance(value, BadRow):
        return {"line": value.line, "reason": value.reason, "label": value.label}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    return [as_json(one) for one in value] if isinstance(value, list | tuple) else value
