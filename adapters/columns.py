"""A column of texts -> columns of answers, for data frames. Knows no library of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nopad.runtime.errors import UsageError
from nopad.runtime.offline.answer_table import has_scores, table_of
from nopad.runtime.offline.answers import as_object
from nopad.runtime.predictor import Model
from nopad.runtime.types import Embedding, Failure, Result, Text


def answer_columns(
    model: Model, texts: Sequence[Text | None], *, scores: bool = False, **wanted: Any
) -> dict[str, list[Any]]:
    """The columns that `nopad predict` writes into tables, `error` last, each as long as `texts`.

    A text that is None has None in all of them; a text that cannot be read has it in all but `error`, which says why.
    `scores`: a column `score_LABEL` for each label. `wanted`: options of `Model.results`. Vectors are float32 [size].
    Raises `UsageError` for `scores` of a task without labels.
    """
    if scores and not has_scores(model.task):
        raise UsageError(f"scores are of labels; the task {model.task} has none")
    table = table_of(model.manifest, kind="", scores=scores)
    columns: dict[str, list[Any]] = {name: [] for name in (*table.own_columns(), "error")}
    answers = model.results([text for text in texts if text is not None], **wanted)
    for text in texts:
        answer = None if text is None else next(answers)
        row = {} if answer is None else _fields(answer)
        for name, column in columns.items():
            column.append(table.row(row).get(name))
    return columns


def _fields(answer: Result | Failure) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {"error": str(answer.error)}
    return {"vector": answer.vector} if isinstance(answer, Embedding) else as_object(answer)


def pairs(texts: Sequence[str | None], seconds: Sequence[str | None] | None) -> list[Text | None]:
    """Texts with their second texts, if there are any: None where one of the two is."""
    if seconds is None:
        return list(texts)
    return [None if None in (a, b) else (a, b) for a, b in zip(texts, seconds, strict=True)]  # type: ignore[misc]
