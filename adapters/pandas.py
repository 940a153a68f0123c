"""pandas: `add_answers`, which adds a bundle's answers to a data frame as columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nopad.adapters.columns import answer_columns, pairs
from nopad.adapters.opening import Opened, Source, needs
from nopad.runtime.errors import UsageError

with needs("pandas"):
    import pandas as pd


def add_answers(
    frame: pd.DataFrame,
    text: str,
    bundle: Source = None,
    *,
    second: str | None = None,
    prefix: str = "nopad_",
    scores: bool = False,
    load_options: Mapping[str, Any] | None = None,
    **wanted: Any,
) -> pd.DataFrame:
    """A copy of `frame` with a column for each field of the answers to its column `text`, named `prefix` + field.

    text-classification and rerank have `label`, `score` (float32; of several labels also `labels`; with `scores` a
    `score_LABEL` for each); token-classification `entities` and `labels`; embeddings `vector` (float32 arrays). A null
    text has nulls. A text that cannot be read has them, too, but its `error` says why, and the others are answered.
    `bundle`: a folder, None for the embedded default, or an opened model, which spares loading it for each frame.
    `second`: the column of second texts, for models of pairs. `load_options`: keyword arguments of `load`; `wanted`: of
    `Model.results` (prompt_name, truncation, ...).
    Raises as `nopad.runtime.load`, and `UsageError` for a column that is missing, or there already.
    """
    for name in (text, second):
        if name is not None and name not in frame.columns:
            raise UsageError(f"the frame has no column {name!r}; it has {', '.join(map(repr, frame.columns))}")
    model = Opened(bundle, adapter="add_answers", load_options=load_options).model
    texts = pairs(_known(frame[text]), None if second is None else _known(frame[second]))
    answers = {f"{prefix}{name}": each for name, each in answer_columns(model, texts, scores=scores, **wanted).items()}
    if taken := [name for name in answers if name in frame.columns]:
        raise UsageError(f"the frame has a column {taken[0]!r} already: give another prefix than {prefix!r}")
    added = {name: _series(name.removeprefix(prefix), each, frame.index) for name, each in answers.items()}
    return pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1)


def _known(column: pd.Series[Any]) -> list[Any]:
    return [None if null else value for value, null in zip(column, column.isna(), strict=True)]


def _series(name: str, values: list[Any], index: pd.Index[Any]) -> pd.Series[Any]:
    if name.startswith("score"):
        return pd.Series(np.array(values, dtype=np.float32), index=index)  # None becomes NaN
    return pd.Series(values, index=index)
