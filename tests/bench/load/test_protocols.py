"""Bodies and answers of every protocol, as ../shared contracts and the servers' own sources have them."""

import base64

import numpy as np
import pytest

from nopad.bench.load.protocols import PROTOCOLS, from_template, rows_of
from nopad.runtime.errors import UsageError

SCORES = [{"label": "a", "score": 0.75}, {"label": "b", "score": 0.25}]
RIGHT = {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize(
    "answer",
    [
        SCORES,  # TEI, one text
        [SCORES],  # the hub's
        {"object": "classify", "data": [SCORES], "model": "m"},  # Infinity
        {"data": [{"index": 0, "label": "a", "score": 0.75, "labels": ["a"], "scores": SCORES}]},  # /v1/classify
        {"output": SCORES},  # a service of one's own
    ],
)
def test_scores_are_read_in_every_shape(answer: object) -> None:
    assert rows_of(answer) == [RIGHT]


@pytest.mark.parametrize(
    "answer",
    [
        [[0.5, -1.0], [2.0, 0.0]],  # TEI
        {"object": "list", "data": [{"index": 0, "embedding": [0.5, -1.0]}, {"index": 1, "embedding": [2.0, 0.0]}]},
        {"data": [{"embedding": base64.b64encode(np.array(row, "<f4")).decode()} for row in ([0.5, -1], [2, 0])]},
        {"outputs": [{"name": "embedding", "datatype": "FP32", "shape": [2, 2], "data": [0.5, -1.0, 2.0, 0.0]}]},
        {"embeddings": [[0.5, -1.0], [2.0, 0.0]]},
    ],
)
def test_vectors_are_read_in_every_shape(answer: object) -> None:
    rows = rows_of(answer)
    assert np.array_equal(np.stack([np.asarray(row) for row in rows]), [[0.5, -1.0], [2.0, 0.0]])


def test_a_batch_has_a_row_for_each_text() -> None:
    assert rows_of([SCORES, SCORES]) == [RIGHT, RIGHT]
    labels = [{"index": 0, "label": "a", "score": 0.9}, {"index": 1, "label": "b", "score": 0.8}]
    assert rows_of({"data": labels}) == [{"a": 0.9}, {"b": 0.8}]


@pytest.mark.parametrize("answer", [{}, [], "", 3, None, {"error": "x"}, [[]], [None]])
def test_what_has_no_rows_is_not_understood(answer: object) -> None:
    with pytest.raises(ValueError):
        rows_of(answer)


def test_two_texts_are_a_batch_and_no_pair() -> None:
    body = PROTOCOLS["tei-predict"].body
    assert body(["x"], None) == {"inputs": "x"} and body(["x", "y"], None) == {"inputs": [["x"], ["y"]]}


def test_a_template_takes_a_text_whatever_it_holds() -> None:
    assert from_template('{"text": TEXT}').body(['"TEXT" \n\u20ac'], None) == {"text": '"TEXT" \n\u20ac'}
    many = from_template('{"texts": TEXTS, "n": 1}')
    assert many.body(["a", "b"], None) == {"texts": ["a", "b"], "n": 1} and not many.one_text
    for wrong in ('{"text": "TEXT}', '{"text": 1}'):
        with pytest.raises(UsageError, match="--template"):
            from_template(wrong)
