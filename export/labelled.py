"""Texts with true labels (`--data`), and the scores of two models on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.model.head import ProblemType
from nopad.runtime.data.fields import LABEL_COLUMNS, MISSING, TEXT_COLUMNS, Field
from nopad.runtime.data.records import open_table
from nopad.runtime.data.table import Source, Table
from nopad.runtime.errors import InputFileError, UsageError
from nopad.runtime.manifest import Manifest
from nopad.runtime.types import FloatArray

# Classes as 0 and 1, for regression the numbers themselves: [rows, num_labels].
Targets = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """Rows of a data file; `targets` None if it has no labels."""

    texts: list[str]
    targets: Targets | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The bundle and transformers on the same rows."""

    rows: int
    agreement: float | None  # share of rows with equal labels; None for regression
    label_mix: dict[str, float]  # share of rows with each predicted label: a baseline for drift
    seconds: float  # of the bundle, tokenization included
    reference_seconds: float
    accuracy: float | None = None  # of the bundle; None without labels. Several labels: all of a row's must be right
    reference_accuracy: float | None = None
    f1: float | None = None  # weighted
    reference_f1: float | None = None
    mse: float | None = None  # mean squared error, for regression
    reference_mse: float | None = None


def read_labelled(
    source: Source | str | Path,
    manifest: Manifest,
    *,
    text_field: str | None = None,
    label_field: str | None = None,
    limit: int | None = None,
) -> LabelledTexts:
    """Read a file or folder (`nopad.runtime.data`) for the classifier that `manifest` describes.

    A label is a name or its number; a list of those, or of zeros and ones, where a text has several labels; a number
    for regression. Without the fields, the usual names are looked for. Raises `InputFileError`, `UsageError`.
    """
    if manifest.task != "text-classification":
        raise UsageError(f"--data is for text-classification, this bundle does {manifest.task}")
    source = str(source) if isinstance(source, Path) else source
    texts: list[str] = []
    labels: list[Any] = []
    places: list[str] = []
    with open_table(source, wanted=[text_field] if text_field else TEXT_COLUMNS) as table:
        label_of = Field(table, label_field, LABEL_COLUMNS, "--label-field", required=label_field is not None)
        for place, text, record in _texts(table, text_field, limit):
            try:
                label = label_of.value(record)
            except ValueError as error:
                raise InputFileError(f"{place}: {error}; name one with --label-field") from None
            texts.append(text)
            labels.append(None if label is MISSING or (table.untyped and not label.strip()) else label)
            places.append(place)
    missing = [place for place, label in zip(places, labels, strict=True) if label is None]
    if len(missing) == len(texts) and (label_field is None or table.columns is not None):
        return LabelledTexts(texts=texts)
    if missing:
        raise InputFileError(
            f"{missing[0]}: no label in field {label_of.name!r} ({len(missing)} of {len(texts)} rows have none); label "
            "all rows or none"
        )
    hot = manifest.problem_type == "multi_label_classification" and _is_hot(labels, len(manifest.labels))
    rows = []
    for place, label in zip(places, labels, strict=True):
        try:
            rows.append(label if hot else _target(label, manifest.labels, manifest.problem_type))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputFileError(f"{place}: {error}") from None
    return LabelledTexts(texts=texts, targets=np.array(rows, dtype=np.float64))


def read_texts(source: Source | str, *, text_field: str | None = None, limit: int | None = None) -> list[str]:
    """The texts of a source, whatever labels it has. Raises `InputFileError` at the first row that has none."""
    with open_table(source, wanted=[text_field] if text_field else TEXT_COLUMNS) as table:
        return [text for _, text, _ in _texts(table, text_field, limit)]


def _texts(table: Table, text_field: str | None, limit: int | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Place, text and record of each row."""
    text_of = Field(table, text_field, TEXT_COLUMNS, "--text-field")
    for number, record in islice(table.items, limit):
        place = table.place(number)
        if isinstance(record, str):
            raise InputFileError(f"{place}: {record}")
        try:
            text = text_of.text(record)
        except ValueError as error:
            raise InputFileError(f"{place}: {error}") from None
        if not text.strip():
            raise InputFileError(f"{place}: no text in field {text_of.name!r}; name one with --text-field")
        yield place, text, record


def _is_hot(labels: Sequence[Any], width: int) -> bool:
    """Whether every label is a row of zeros and ones (the rule of nopad.training.data)."""
    return all(isinstance(label, list) and len(label) == width and all(x in (0, 1) for x in label) for label in labels)


def _target(label: Any, names: Sequence[str], problem_type: ProblemType | None) -> list[float]:
    if problem_type == "regression":
        numbers = [float(one) for one in (label if isinstance(label, list) else [label])]
        if len(numbers) != len(names) or not all(map(math.isfinite, numbers)):
            raise ValueError(f"label {label!r} is not {len(names)} finite number{'s' if len(names) > 1 else ''}")
        return numbers
    row = [0.0] * len(names)
    several = problem_type == "multi_label_classification"
    for one in label if several and isinstance(label, list) else [label]:
        if str(one) in names:
            row[names.index(str(one))] = 1.0
        elif str(one).isdigit() and int(one) < len(names):
            row[int(one)] = 1.0
        else:
            raise ValueError(f"label {one!r} is not among {', '.join(names)}")
    return row


def decide(logits: FloatArray, problem_type: ProblemType | None) -> Targets | None:
    """The labels that logits [rows, num_labels] mean, as 0 and 1; None for regression."""
    if problem_type == "regression":
        return None
    if problem_type == "multi_label_classification":
        return (logits > 0).astype(np.float64)
    return np.eye(logits.shape[-1])[logits.argmax(-1)]


def evaluate(
    served: FloatArray, trained: FloatArray, manifest: Manifest, targets: Targets | None, seconds: tuple[float, float]
) -> Evaluation:
    """Scores of the bundle's logits and of transformers', both [rows, num_labels]; `seconds` each took."""
    got, want = decide(served, manifest.problem_type), decide(trained, manifest.problem_type)
    scores: dict[str, float] = {}
    if targets is not None and (got is None or want is None):
        scores = {"mse": _mse(served, targets), "reference_mse": _mse(trained, targets)}
    elif targets is not None and got is not None and want is not None:
        scores = {
            "accuracy": equal_rows(got, targets),
            "reference_accuracy": equal_rows(want, targets),
            "f1": weighted_f1(targets, got),
            "reference_f1": weighted_f1(targets, want),
        }
    return Evaluation(
        rows=len(served),
        agreement=None if got is None or want is None else equal_rows(got, want),
        label_mix={} if got is None else {name: float(got[:, i].mean()) for i, name in enumerate(manifest.labels)},
        seconds=seconds[0],
        reference_seconds=seconds[1],
        **scores,
    )


def equal_rows(a: Targets, b: Targets) -> float:
    """Share of rows that are equal in every column."""
    return float((a == b).all(axis=1).mean())


def _mse(logits: FloatArray, targets: Targets) -> float:
    return float(np.mean((logits - targets) ** 2))


def weighted_f1(truth: Targets, guess: Targets) -> float:
    """F1 of each label, weighted by its share of the truth (scikit-learn's `average="weighted"`)."""
    hits = (truth * guess).sum(axis=0)
    relevant, selected = truth.sum(axis=0), guess.sum(axis=0)
    each = 2 * hits / np.maximum(relevant + selected, 1)
    return float((each * relevant).sum() / max(relevant.sum(), 1))
