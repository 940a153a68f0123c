"""The population stability index, its bins, and the window of a server."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopad.model.head import Head
from nopad.runtime.drift import (
    CONFIDENCE_BINS,
    LEAST_ANSWERS,
    LENGTH_ENDS,
    Answers,
    Window,
    baseline,
    baseline_from_json,
    confidence_bin,
    length_bin,
    noise,
    place,
    psi,
)
from nopad.runtime.types import Prediction

counts = st.lists(st.integers(0, 10**6), min_size=1, max_size=30).filter(any)
pairs = st.integers(1, 20).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 1000), min_size=n, max_size=n).filter(any)] * 2)
)


@given(counts, st.integers(1, 1000))
def test_equal_shares_have_no_distance(one: list[int], times: int) -> None:
    assert psi(one, one) == 0
    assert psi(one, [times * count for count in one]) == pytest.approx(0, abs=1e-12)


@given(pairs)
def test_it_is_symmetric_and_never_negative(pair: tuple[list[int], list[int]]) -> None:
    one, other = pair
    assert psi(one, other) == pytest.approx(psi(other, one))
    assert 0 <= psi(one, other) < math.inf


def test_it_is_the_formula_by_hand() -> None:
    assert psi([50, 50], [80, 20]) == pytest.approx(0.3 * math.log(1.6) - 0.3 * math.log(0.4))
    # An empty bin counts as one in ten thousand.
    assert psi([100, 0], [90, 10]) == pytest.approx((0.9 - 1) * math.log(0.9) + (0.1 - 1e-4) * math.log(1000))
    for wrong in ([1, 2, 3], [0, 0]):
        with pytest.raises(ValueError, match="histograms"):
            psi([1, 2], wrong)


def test_two_samples_of_one_distribution_differ_by_as_much_as_noise_says() -> None:
    random, shares = np.random.default_rng(0), np.arange(1, 11) / 55
    found = [psi(random.multinomial(2000, shares), random.multinomial(1000, shares)) for _ in range(400)]
    assert np.mean(found) == pytest.approx(noise([200] * 10, [100] * 10), rel=0.15)


@given(st.floats(0, 1), st.floats(0, 1))
def test_bins_of_scores_are_in_order_and_hold_their_upper_end(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= confidence_bin(low) <= confidence_bin(high) < CONFIDENCE_BINS
    assert confidence_bin(low) / CONFIDENCE_BINS <= low <= (confidence_bin(low) + 1) / CONFIDENCE_BINS + 1e-12


@given(st.integers(1, 10**6))
def test_bins_of_lengths_hold_their_upper_end(tokens: int) -> None:
    assert length_bin(tokens) == int(np.searchsorted(LENGTH_ENDS, tokens))


def answer(score: float, tokens: int, *labels: str) -> Prediction:
    return Prediction(
        label="a", score=score, labels=labels, scores={}, tokens=tokens, tokens_used=tokens, engine="", precision=""
    )


def test_the_baseline_counts_what_the_answers_of_the_same_head_are() -> None:
    head = Head(
        task="text-classification", labels=("a", "b"), problem_type="multi_label_classification", thresholds=(0.5, 0.9)
    )
    logits = np.array([[3, 3], [-3, 1], [1, -1]], np.float32)  # a and b; none; a
    found = baseline(logits, [3, 4, 5], head)
    assert found.labels.tolist() == [2, 1, 1]
    assert found.confidence.sum() == found.length.sum() == 3 and found.length[:3].tolist() == [0, 2, 1]
    index = {"a": 0, "b": 1}
    one = Answers(labels=found.labels * 0, confidence=found.confidence * 0, length=found.length * 0)
    for row, tokens, labels in zip(head.probabilities(logits), (3, 4, 5), (("a", "b"), (), ("a",)), strict=True):
        own, confidence, length = place(answer(float(row.max()), tokens, *labels), index)
        one.labels[list(own)] += 1
        one.confidence[confidence] += 1
        one.length[length] += 1
    assert one.to_json() == found.to_json()
    again = baseline_from_json(found.to_json(), 2)
    assert again is not None and again.to_json() == found.to_json()


@pytest.mark.parametrize("raw", [None, {}, {"labels": [1, 2]}, {"labels": "x", "confidence": [], "length": []}])
def test_what_is_no_baseline_is_none(raw: dict[str, object] | None) -> None:
    assert baseline_from_json(raw, 2) is None


def test_a_baseline_of_other_bins_is_none() -> None:
    good = baseline(np.ones((4, 2), np.float32), [1] * 4, Head(task="text-classification", labels=("a", "b")))
    assert baseline_from_json(good.to_json(), 2) is not None
    assert baseline_from_json(good.to_json(), 3) is None
    assert baseline_from_json({**good.to_json(), "confidence": [1] * 10}, 2) is None
    assert baseline_from_json({**good.to_json(), "length": [-1, 1] + [0] * 13}, 2) is None


def test_a_window_forgets_what_is_older_and_says_nothing_of_few_answers() -> None:
    head = Head(task="text-classification", labels=("a", "b"))
    logits = np.array([[2, 0], [0, 2]] * 500, np.float32)
    window, index = Window(baseline(logits, [8] * 1000, head), 600), {"a": 0, "b": 1}
    score = float(head.probabilities(logits)[0, 0])
    for _ in range(LEAST_ANSWERS - 1):
        window.add(place(answer(score, 8, "a"), index))
    assert window.psi() is None
    window.add(place(answer(score, 8, "a"), index))
    found = window.psi()
    assert found is not None and found["labels"] > 1 and found["confidence"] == found["length"] == 0
    for number in range(600):
        window.add(place(answer(score, 8, "ab"[number % 2]), index))
    assert window.psi() == {"labels": 0, "confidence": 0, "length": 0}
