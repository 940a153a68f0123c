"""Rows of the gate know whether they have passed."""

import numpy as np
import pytest

from nopad.export.parity.bounds import BOUNDS, SHARES, Row, answer_rows, cosine, difference, scaled


def test_a_difference_may_be_its_bound_and_a_share_must_be() -> None:
    assert Row.at_most("logits", "a text", 1e-5, 1e-5).passed
    assert not Row.at_most("logits", "a text", 1.1e-5, 1e-5).passed
    assert not Row.at_most("logits", "a text", float("inf"), 1e-5).passed
    assert not Row.at_most("logits", "a text", float("nan"), 1e-5).passed
    for check in SHARES:
        assert Row.at_least(check, "all", 1.0, 1.0).passed
        assert not Row.at_least(check, "all", 0.99, 1.0).passed


def test_what_cannot_be_compared_differs_infinitely() -> None:
    row = np.array([1.0, -2.0], dtype=np.float32)
    assert difference(row, row + np.float32(0.5)) == pytest.approx(0.5)
    assert difference(row, row[:1]) == difference(row * np.float32("nan"), row) == float("inf")


def test_an_embedding_is_judged_by_its_direction_too() -> None:
    want = np.array([[3.0, 4.0], [0.0, 1.0]], dtype=np.float32)
    turned = np.array([[3.0, 4.0], [0.28, 0.96]], dtype=np.float32)
    assert cosine(2 * want, want) == pytest.approx(1.0) and cosine(turned, want) == pytest.approx(0.96)
    assert cosine(want[:1], want) == cosine(want * np.float32("nan"), want) == -1.0
    assert cosine(0 * want, want) == 0.0
    int8 = [answer_rows("a text", turned[1], want[1], BOUNDS["int8"], embedding=one) for one in (True, False)]
    first, second = ([(row.check, row.passed) for row in rows] for rows in int8)
    assert first == [("logits", True), ("cosine", False)] and second == [("logits", True)]
    exact = answer_rows("a text", want[1], want[1], BOUNDS["fp32"], embedding=True)
    assert [row.check for row in exact] == ["logits"]  # 1e-5 of each number leaves no room to turn


def test_a_bound_grows_with_the_logits_and_does_not_shrink() -> None:
    assert scaled(1e-5, np.array([0.1, -0.2], dtype=np.float32)) == 1e-5
    assert scaled(1e-5, np.array([0.1, -20.0], dtype=np.float32)) == pytest.approx(2e-4)


def test_a_smaller_precision_has_no_tighter_bounds() -> None:
    names = list(BOUNDS)
    assert names == ["fp32", "fp16", "bf16", "int8"]
    assert all(BOUNDS[a].logits <= BOUNDS[b].logits for a, b in zip(names, names[1:], strict=False))
