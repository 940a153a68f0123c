"""Polars: `answers`, an expression whose values are a bundle's answers to a column of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nopad.adapters.columns import answer_columns, pairs
from nopad.adapters.opening import Opened, Source, needs

with needs("polars"):
    import polars as pl


def answers(
    text: str | pl.Expr,
    bundle: Source = None,
    *,
    second: str | pl.Expr | None = None,
    scores: bool = False,
    load_options: Mapping[str, Any] | None = None,
    **wanted: Any,
) -> pl.Expr:
    """An expression for the answers to a column of texts: a struct named `nopad`, for `.struct.field` or `unnest`.

    Its fields: text-classification and rerank `label`, `score` (Float32; of several labels also `labels`; with
    `scores` a `score_LABEL` for each); token-classification `entities` and `labels`; embeddings `vector` (an Array of
    Float32). A null text has a null. A text that cannot be read has nulls, but its `error` says why, and the others are
    answered. It is elementwise: a lazy frame that is collected by the streaming engine is answered batch by batch.
    `bundle`, `load_options`, `wanted`: as of `nopad.adapters.pandas.add_answers`; the bundle is opened now.
    Raises as `nopad.runtime.load`, and `UsageError`.
    """
    model = Opened(bundle, adapter="answers", load_options=load_options).model
    size = model.embed([]).shape[1] if model.task == "embeddings" else 0
    none = answer_columns(model, [], scores=scores, **wanted)  # refuses what makes no sense before any text is read
    kinds = {name: _kind(name, size) for name in none}

    def answer(batch: pl.Series) -> pl.Series:
        fields = batch.struct.unnest().get_columns()
        texts = pairs(fields[0].to_list(), fields[1].to_list() if len(fields) > 1 else None)
        columns = answer_columns(model, texts, scores=scores, **wanted)
        frame = pl.DataFrame({name: _series(values, kinds[name]) for name, values in columns.items()})
        known = pl.Series([text is not None for text in texts], dtype=pl.Boolean)
        return frame.select(pl.when(known).then(pl.struct(pl.all())).alias("nopad")).to_series()

    columns = [pl.col(each) if isinstance(each, str) else each for each in (text, second) if each is not None]
    asked = pl.struct([each.alias(str(place)) for place, each in enumerate(columns)])
    return asked.map_batches(answer, return_dtype=pl.Struct(kinds), is_elementwise=True).alias("nopad")


def _series(values: list[Any], kind: Any) -> pl.Series:
    if not isinstance(kind, pl.Array):
        return pl.Series(values, dtype=kind)
    # Polars makes no Array of numpy's rows and nulls: zeros stand in for those, and are taken out again.
    none = np.zeros(kind.shape, dtype=np.float32)
    rows = np.array([none if each is None else each for each in values], dtype=np.float32).reshape(-1, *kind.shape)
    known = pl.Series([each is not None for each in values], dtype=pl.Boolean)
    return pl.select(pl.when(known).then(pl.Series(rows))).to_series()


def _kind(name: str, size: int) -> Any:
    """The type of a column of answers."""
    scored = {"score": pl.Float32()}
    kinds: Mapping[str, Any] = {
        "labels": pl.List(pl.String()),
        "tokens_text": pl.List(pl.String()),
        "abstained": pl.Boolean(),
        "entities": pl.List(
            pl.Struct({"label": pl.String(), **scored, "start": pl.Int64(), "end": pl.Int64(), "text": pl.String()})
        ),
        "masks": pl.List(pl.List(pl.Struct({"token": pl.String(), **scored}))),
        "vector": pl.Array(pl.Float32(), size),
        "vectors": pl.List(pl.List(pl.Float32())),
    }
    return pl.Float32() if name.startswith("score") else kinds.get(name, pl.String())
