"""Answers as an expression of Polars."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pl: Any = pytest.importorskip("polars", reason="pip install 'nopad[polars]'")
from polars.testing import assert_frame_equal

from nopad.adapters.polars import answers
from nopad.runtime import Model, load
from nopad.runtime.errors import UsageError

TEXTS = ["a dull film", None, "splendid", " "]


def test_labels_and_scores_in_the_frames_order() -> None:
    frame = pl.DataFrame({"text": TEXTS})
    with load(threads=1) as model:
        dull, splendid = model.predict(["a dull film", "splendid"])
        found = frame.with_columns(answers("text", model, scores=True))
    assert found["nopad"].is_null().to_list() == [False, True, False, False]
    assert found.schema["nopad"] == pl.Struct(
        {"label": pl.String, "score": pl.Float32, "score_negative": pl.Float32, "score_positive": pl.Float32,
         "error": pl.String}
    )  # fmt: skip
    rows = found.unnest("nopad")
    assert rows["label"].to_list() == [dull.label, None, splendid.label, None]
    assert rows["score"].drop_nulls().to_list() == [np.float32(dull.score), np.float32(splendid.score)]
    assert rows["score_positive"][2] == np.float32(splendid.scores["positive"])
    assert rows["error"].to_list() == [None] * 3 + [
        "the text is empty or only spaces: there is nothing to predict from"
    ]


def test_lazy_frames_know_the_type_before_they_run_and_stream() -> None:
    lazy = pl.LazyFrame({"text": ["a dull film", None, "splendid"] * 100})
    query = lazy.select(answers(pl.col("text").str.to_uppercase(), load_options={"threads": 1})).unnest("nopad")
    assert query.collect_schema()["label"] == pl.String
    found = query.filter(pl.col("score") > 0).collect(engine="streaming")
    assert found.height == 200 and set(found["label"]) <= {"negative", "positive"}
    assert_frame_equal(found, query.filter(pl.col("score") > 0).collect())  # but for rounding


def test_each_task_has_its_fields(embedding_model: Model, opened: Callable[[str], Model], tmp_path: Path) -> None:
    frame = pl.DataFrame({"text": TEXTS})
    found = frame.with_columns(answers("text", embedding_model, prompt_name="query")).unnest("nopad")
    assert found.schema["vector"] == pl.Array(pl.Float32, 64)
    np.testing.assert_allclose(
        found["vector"].drop_nulls().to_numpy(),
        embedding_model.embed([TEXTS[0], TEXTS[2]], prompt_name="query"),
        atol=1e-6,
    )
    found.write_parquet(tmp_path / "vectors.parquet")  # a plain type
    assert pl.read_parquet(tmp_path / "vectors.parquet").equals(found)
    tagger, several, filler = (opened(f"modernbert-{name}") for name in ("token", "multi-cls", "mlm"))
    entities = frame.select(answers("text", tagger)).unnest("nopad")["entities"].to_list()
    assert entities[1] is None and entities[3] is None
    assert [each["start"] for each in entities[0]] == [each.start for each in tagger.tag(["a dull film"])[0].entities]
    labels = frame.select(answers("text", several)).unnest("nopad")["labels"].to_list()
    assert labels[2] == list(several.predict(["splendid"])[0].labels)
    mask = f"a {filler.manifest.mask_token} film"
    masks = pl.DataFrame({"text": [mask]}).select(answers("text", filler, top_k=2)).unnest("nopad")["masks"]
    assert [each["token"] for each in masks[0][0]] == [token for token, _ in filler.fill([mask], top_k=2)[0].masks[0]]


def test_pairs_of_texts_are_null_where_one_of_them_is(opened: Callable[[str], Model]) -> None:
    model = opened("modernbert-rerank")
    frame = pl.DataFrame({"query": ["a", "b", None], "passage": ["x y", None, "z"]})
    found = frame.select(answers("query", model, second="passage").struct.field("score"))["score"].to_list()
    assert found == [np.float32(model.rerank("a", ["x y"])[0].score), None, None]


def test_what_makes_no_sense_is_refused_before_a_text_is_read(embedding_model: Model) -> None:
    with pytest.raises(UsageError, match="scores are of labels; the task embeddings has none"):
        answers("text", embedding_model, scores=True)
    with pytest.raises(UsageError, match="no prompt named 'none'"):
        answers("text", embedding_model, prompt_name="none")


def test_a_frame_without_rows() -> None:
    found = pl.DataFrame({"text": []}, schema={"text": pl.String}).select(answers("text", load_options={"threads": 1}))
    assert found.height == 0 and found.unnest("nopad").columns == ["label", "score", "error"]
