"""Embeddings as clients ask for them."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nopad.runtime.server import vectors
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Answered
from nopad.runtime.server.vectors import base64_of, token_vectors_of, vectors_of


def answered(*rows: list[float]) -> Answered:
    vectors: list[Any] = [SimpleNamespace(vector=np.array(row, dtype=np.float32)) for row in rows]
    return cast(Answered, SimpleNamespace(answers=vectors))


def test_a_cut_vector_has_length_one_again() -> None:
    vectors = vectors_of(answered([3.0, 4.0, 12.0], [0.0, -2.0, 5.0]), normalize=True, dimensions=2)
    assert vectors.dtype == np.float32 and np.allclose(vectors, [[0.6, 0.8], [0.0, -1.0]])
    assert np.array_equal(vectors_of(answered([3.0, 4.0]), normalize=False), [[3.0, 4.0]])


def test_zeros_stay_zeros_and_large_numbers_do_not_overflow() -> None:
    vectors = vectors_of(answered([0.0, 0.0], [3e38, 3e38], [1e-45, 0.0]), normalize=True)
    assert np.allclose(vectors, [[0.0, 0.0], [0.5**0.5] * 2, [1.0, 0.0]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_no_number_is_refused(value: float, normalize: bool) -> None:
    with pytest.raises(Fault, match="not a number") as caught:
        vectors_of(answered([1.0, value]), normalize=normalize)
    assert caught.value.kind == "engine"


def test_base64_is_little_endian_float32() -> None:
    assert base64.b64decode(base64_of(np.array([1.0, -2.0], dtype=np.float32))) == bytes.fromhex("0000803f000000c0")


def test_tokens_have_a_vector_each_and_an_answer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [np.array([[3, 4, 12], [0, -2, 5]], np.float32), np.array([[0, 7, 1]], np.float32)]
    answers: Any = SimpleNamespace(answers=[SimpleNamespace(vectors=rows) for rows in texts], tokens=3)
    cut = token_vectors_of(answers, normalize=True, dimensions=2)
    assert np.allclose(cut[0], [[0.6, 0.8], [0, -1]]) and np.array_equal(cut[1], [[0, 1]])
    with pytest.raises(Fault, match="between 1 and 3"):
        token_vectors_of(answers, normalize=True, dimensions=4)
    monkeypatch.setattr(vectors, "MOST_NUMBERS", 8)
    with pytest.raises(Fault, match="the embeddings of 3 tokens are 9 numbers, over 8 in one answer") as caught:
        token_vectors_of(answers, normalize=False)
    assert caught.value.kind == "validation"
