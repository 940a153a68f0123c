"""Answers as columns of a data frame of pandas."""

from collections.abc import Callable

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="pip install 'nopad[pandas]'")

from nopad.adapters.pandas import add_answers
from nopad.runtime import Model, load
from nopad.runtime.errors import UsageError

TEXTS = ["a dull film", None, "splendid", " ", float("nan")]


@pytest.fixture
def frame() -> "pd.DataFrame":
    return pd.DataFrame({"id": range(5), "text": TEXTS}, index=list("vwxyz"))


def test_labels_and_scores_in_the_frames_order(frame: "pd.DataFrame") -> None:
    before = frame.copy()
    with load(threads=1) as model:
        found = add_answers(frame, "text", model, scores=True)
        dull, splendid = model.predict(["a dull film", "splendid"])
    own = [f"nopad_{name}" for name in ("label", "score", "score_negative", "score_positive", "error")]
    assert list(found) == ["id", "text", *own] and list(found.index) == list("vwxyz")
    assert found["nopad_label"].dropna().to_dict() == {"v": dull.label, "x": splendid.label}
    assert found["nopad_score"].dtype == np.float32
    np.testing.assert_array_equal(
        found["nopad_score"], np.array([dull.score, np.nan, splendid.score, np.nan, np.nan], dtype=np.float32)
    )
    assert found["nopad_score_positive"]["x"] == np.float32(splendid.scores["positive"])
    assert found["nopad_error"].dropna().to_dict() == {
        "y": "the text is empty or only spaces: there is nothing to predict from"
    }
    pd.testing.assert_frame_equal(frame, before)


def test_each_task_has_its_columns(
    frame: "pd.DataFrame", embedding_model: Model, opened: Callable[[str], Model]
) -> None:
    vectors = add_answers(frame, "text", embedding_model, prompt_name="query")["nopad_vector"]
    np.testing.assert_allclose(
        np.stack(list(vectors.dropna())),
        embedding_model.embed(["a dull film", "splendid"], prompt_name="query"),
        atol=1e-6,
    )
    tagger, several = opened("modernbert-token"), opened("modernbert-multi-cls")
    entities = add_answers(frame, "text", tagger)["nopad_entities"]
    (tagging,) = tagger.tag(["a dull film"])
    assert [(each["label"], each["start"]) for each in entities["v"]] == [(e.label, e.start) for e in tagging.entities]
    assert entities.isna().to_dict() == {"v": False, "w": True, "x": False, "y": True, "z": True}
    labels = add_answers(frame, "text", several, prefix="")["labels"]
    assert labels["x"] == list(several.predict(["splendid"])[0].labels)
    with pytest.raises(UsageError, match="scores are of labels; the task embeddings has none"):
        add_answers(frame, "text", embedding_model, scores=True)


def test_pairs_of_texts_are_null_where_one_of_them_is(opened: Callable[[str], Model]) -> None:
    model = opened("modernbert-rerank")
    frame = pd.DataFrame({"query": ["a", "b", None], "passage": ["x y", None, "z"]})
    found = add_answers(frame, "query", model, second="passage")
    assert found["nopad_score"].isna().tolist() == [False, True, True]
    assert found["nopad_score"][0] == np.float32(model.rerank("a", ["x y"])[0].score)


def test_columns_that_are_missing_or_taken_are_named(frame: "pd.DataFrame") -> None:
    with pytest.raises(UsageError, match="no column 'texts'; it has 'id', 'text'"):
        add_answers(frame, "texts")
    with pytest.raises(UsageError, match="a column 'label' already: give another prefix than ''"):
        add_answers(frame.assign(label="?"), "text", prefix="", load_options={"threads": 1})


def test_a_frame_without_rows_or_without_texts() -> None:
    empty = pd.DataFrame({"text": [None, None]})
    with load(threads=1) as model:
        assert add_answers(empty, "text", model)["nopad_label"].isna().all()
        assert list(add_answers(empty[:0], "text", model)) == ["text", "nopad_label", "nopad_score", "nopad_error"]
