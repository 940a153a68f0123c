"""Temperature and thresholds: known ones are found again, and no figure is of rows that were fitted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nopad.model.head import PROBLEM_TYPES, Head, ProblemType, sigmoid, softmax
from nopad.model.reliability import BINS, reliability
from nopad.runtime.calibration import (
    Calibrated,
    calibrate,
    check_head,
    f1_threshold,
    figures,
    fit_temperature,
)
from nopad.runtime.errors import InputFileError, UsageError

SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
NAMES = ("a", "b", "c")
Logits = np.ndarray[Any, np.dtype[np.float32]]
Targets = np.ndarray[Any, np.dtype[np.float64]]


def head_of(problem_type: ProblemType = SINGLE, **fields: Any) -> Head:
    return Head(task="text-classification", labels=NAMES, problem_type=problem_type, **fields)


def drawn(head: Head, temperature: float, rows: int = 20_000) -> tuple[Logits, Targets]:
    """Logits of a model that is `temperature` times too sure of itself, and labels by the true probabilities."""
    random = np.random.default_rng(7)
    true = random.normal(0, 2, (rows, len(NAMES))).astype(np.float32)
    if head.multi_label:
        targets = (random.random(true.shape) < sigmoid(true)).astype(np.float64)
    else:
        ends = softmax(true).cumsum(axis=1)
        chosen = (random.random((rows, 1)) > ends).sum(axis=1).clip(0, len(NAMES) - 1)
        targets = np.eye(len(NAMES))[chosen]
    return true * np.float32(temperature), targets


def fitted(head: Head, rows: int = 400, temperature: float = 2.0, **options: Any) -> tuple[Calibrated, Logits, Targets]:
    logits, targets = drawn(head, temperature, rows)
    texts = [f"text {i}" for i in range(rows)]
    return calibrate(logits, targets, texts, head, **options), logits, targets


# --- temperature


@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.5, 20.0])
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_a_known_temperature_is_found_again(problem_type: ProblemType, temperature: float) -> None:
    head = head_of(problem_type)
    logits, targets = drawn(head, temperature)
    assert fit_temperature(logits, targets, head) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_no_other_temperature_makes_the_labels_likelier(problem_type: ProblemType) -> None:
    head = head_of(problem_type)
    logits, targets = drawn(head, 1.7, rows=300)
    best = fit_temperature(logits, targets, head)
    likelihoods = {
        factor: figures(logits, targets, dataclasses.replace(head, temperature=best * factor)).nll
        for factor in (0.5, 0.9, 0.999, 1.0, 1.001, 1.1, 2.0)
    }
    assert min(likelihoods, key=lambda factor: likelihoods[factor]) == 1.0


@settings(max_examples=50)
@given(
    logits=arrays(np.float32, (60, 3), elements=st.floats(-20, 20, width=32)),
    labels=arrays(np.int64, 60, elements=st.integers(0, 2)),
    problem_type=st.sampled_from([SINGLE, MULTI]),
)
def test_probabilities_stay_probabilities_and_keep_their_order(
    logits: Logits, labels: np.ndarray[Any, np.dtype[np.int64]], problem_type: ProblemType
) -> None:
    head = head_of(problem_type)
    try:
        temperature = fit_temperature(logits, np.eye(3)[labels], head)
    except InputFileError:
        return  # nothing to learn: said, not guessed
    assert 0 < temperature < np.inf
    calibrated = dataclasses.replace(head, temperature=temperature)
    p = calibrated.probabilities(logits)
    assert ((p >= 0) & (p <= 1)).all()
    if problem_type == SINGLE:
        assert np.allclose(p.sum(axis=1), 1, atol=1e-6)
    ordered = np.take_along_axis(p, np.argsort(-logits, kind="stable", axis=-1), -1)
    assert (np.diff(ordered, axis=-1) <= 0).all()
    assert (calibrated.decide(logits) == head.decide(logits)).all()


def test_labels_that_leave_nothing_to_learn_are_refused() -> None:
    logits, _ = drawn(head_of(), 1.0, rows=100)
    right = np.eye(3)[logits.argmax(1)]
    with pytest.raises(InputFileError, match="leave no error to learn a temperature from.*not|none that the model"):
        fit_temperature(logits, right, head_of())
    with pytest.raises(InputFileError, match="nothing to do with their labels.*--label-field"):
        fit_temperature(logits, np.eye(3)[logits.argmin(1)], head_of())
    with pytest.raises(InputFileError, match="nothing to do with their labels"):
        fit_temperature(np.zeros_like(logits), right, head_of())


# --- figures


def test_figures_are_those_of_their_definitions() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.08, 0.82], [0.29, 0.42, 0.29]])
    logits, targets = np.log(p).astype(np.float32), np.eye(3)[[0, 0, 2, 1]]
    got = figures(logits, targets, head_of())
    assert got.nll == pytest.approx(-np.log([0.7, 0.4, 0.82, 0.42]).mean(), abs=1e-6)
    assert got.brier == pytest.approx(((p - targets) ** 2).sum(axis=1).mean(), abs=1e-6)
    assert got.accuracy == 0.75 and got.f1 is None and got.abstained is None
    # Four bins of one answer each: right, wrong, right, right.
    assert got.ece == pytest.approx((0.3 + 0.5 + 0.18 + 0.58) / 4, abs=1e-6)
    bins = reliability(logits, targets, head_of())
    assert [one.count for one in bins] == [int(n in (6, 7, 10, 12)) for n in range(BINS)]


def test_figures_of_several_labels() -> None:
    p = np.array([[0.9, 0.4, 0.2], [0.6, 0.4, 0.1]])
    logits, targets = np.log(p / (1 - p)).astype(np.float32), np.array([[1.0, 0, 0], [0, 1, 0]])
    got = figures(logits, targets, head_of(MULTI))
    likely = np.where(targets == 1, p, 1 - p)
    assert got.nll == pytest.approx(-np.log(likely).mean(), abs=1e-6)
    assert got.brier == pytest.approx(((p - targets) ** 2).mean(), abs=1e-6)
    assert got.accuracy == 0.5 and got.f1 == pytest.approx((2 / 3 + 0) / 2)  # the third label is never there nor given
    # The two 0.4 share a bin: one of two is true.
    assert got.ece == pytest.approx((0.1 + 2 * 0.1 + 0.2 + 0.6 + 0.1) / 6, abs=1e-6)
    assert sum(one.count for one in reliability(logits, targets, head_of(MULTI))) == 6


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_true_probabilities_have_no_calibration_error(problem_type: ProblemType) -> None:
    head = head_of(problem_type)
    logits, targets = drawn(head, 1.0, rows=100_000)
    assert figures(logits, targets, head).ece < 0.005
    assert figures(logits * 3, targets, head).ece > 0.05


def test_a_likelihood_that_float32_rounds_to_nothing_is_finite() -> None:
    logits = np.array([[300.0, -300.0, 0.0]] * 2, dtype=np.float32)
    for head, want in ((head_of(), 300.0), (head_of(MULTI), (300 + np.log(2)) / 3)):
        assert figures(logits, np.eye(3)[[1, 0]], head).nll == pytest.approx(want, rel=1e-6)


def test_abstaining_is_judged_by_the_answers_that_are_left() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.08, 0.82], [0.29, 0.42, 0.29]])
    logits, targets = np.log(p).astype(np.float32), np.eye(3)[[0, 0, 2, 1]]
    got = figures(logits, targets, head_of(abstain_below=0.6))
    assert (got.abstained, got.answered_accuracy, got.accuracy) == (0.5, 1.0, 0.75)
    assert figures(logits, targets, head_of(abstain_below=0.9)).answered_accuracy is None


# --- thresholds


def test_a_threshold_is_the_middle_of_the_gap_with_the_best_f1() -> None:
    truth = np.array([0, 1, 0, 1, 1.0])
    assert f1_threshold(np.array([0.1, 0.3, 0.2, 0.7, 0.9]), truth) == pytest.approx(0.25)
    assert f1_threshold(np.array([0.3, 0.3, 0.3, 0.3, 0.3]), truth) == pytest.approx(0.15)  # nothing to part: all
    assert f1_threshold(np.array([0.9]), np.array([1.0])) == pytest.approx(0.45)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=30).filter(lambda x: any(dict(x))))
def test_no_other_threshold_has_a_better_f1(rows: list[tuple[int, bool]]) -> None:
    p, truth = np.array([row[0] / 20 for row in rows]), np.array([float(row[1]) for row in rows])
    if not truth.any() or not p.any():
        return

    def f1(threshold: float) -> float:
        given_label = p >= threshold
        return float(2 * (given_label * truth).sum() / (given_label.sum() + truth.sum()))

    best = f1_threshold(p, truth)
    assert 0 < best < 1
    assert f1(best) >= max(f1(x) for x in np.arange(1, 40) / 40) - 1e-12


def test_thresholds_of_several_labels_raise_their_f1() -> None:
    result, logits, targets = fitted(head_of(MULTI), rows=2000, thresholds=True)
    assert result.head.thresholds is not None and all(0 < x < 1 for x in result.head.thresholds)
    plain = dataclasses.replace(result.head, thresholds=None)
    assert (figures(logits, targets, result.head).f1 or 0) > (figures(logits, targets, plain).f1 or 1)
    assert result.after.f1 is not None and result.before.f1 is not None and result.after.f1 > result.before.f1


# --- held-out rows


def test_what_is_reported_is_of_rows_that_were_not_fitted() -> None:
    result, logits, targets = fitted(head_of(), rows=600)
    assert result.fitted_rows + result.held_out_rows == 600 and 200 < result.held_out_rows < 400
    assert sum(one.count for one in result.after_bins) == result.held_out_rows
    assert result.head.temperature == fit_temperature(logits, targets, head_of()) != result.held_out_temperature
    assert result.after.ece < result.before.ece and result.after.nll < result.before.nll
    assert result.after.brier < result.before.brier
    assert result.after.accuracy == result.before.accuracy


def test_rows_with_the_same_text_are_on_one_side_and_order_does_not_matter() -> None:
    logits, targets = drawn(head_of(), 2.0, rows=400)
    texts = [f"text {i % 100}" for i in range(400)]
    result = calibrate(logits, targets, texts, head_of())
    assert result.fitted_rows % 4 == result.held_out_rows % 4 == 0
    order = np.random.default_rng(0).permutation(400)
    again = calibrate(logits[order], targets[order], [texts[i] for i in order], head_of())
    assert again.held_out_temperature == pytest.approx(result.held_out_temperature)
    assert again.after.nll == pytest.approx(result.after.nll)


def test_a_former_calibration_changes_nothing() -> None:
    fresh, _, _ = fitted(head_of())
    again, _, _ = fitted(head_of(temperature=9.0, abstain_below=0.4))
    assert again == fresh
    kept, _, _ = fitted(head_of(), abstain_below=0.6)
    assert kept.head.abstain_below == 0.6 and kept.after.abstained is not None and kept.before.abstained is None


# --- refusals


def test_too_few_rows_are_refused() -> None:
    logits, targets = drawn(head_of(), 2.0, rows=200)
    with pytest.raises(InputFileError, match="40 different texts are too few.*at least 50"):
        calibrate(logits, targets, [f"text {i % 40}" for i in range(200)], head_of())
    texts = [f"text {i}" for i in range(200)]
    without = np.eye(3)[np.where(targets.argmax(1) == 1, 0, targets.argmax(1))]
    with pytest.raises(InputFileError, match="no row has the label 'b': give rows of every label"):
        calibrate(logits, without, texts, head_of())
    several = np.ones_like(targets)
    with pytest.raises(InputFileError, match="every row has the label 'a'"):
        calibrate(logits, several, texts, head_of(MULTI))
    several[1:, 2] = 0
    several[::2, :2] = 0
    with pytest.raises(InputFileError, match="1 rows with the label 'c' are too few.*--thresholds none"):
        calibrate(logits, several, texts, head_of(MULTI), thresholds=True)


@pytest.mark.parametrize(
    ("head", "options", "words"),
    [
        (head_of(REGRESSION), {}, "this bundle does regression"),
        (Head(task="embeddings"), {}, "this bundle does embeddings"),
        (Head(task="rerank", labels=("a",)), {}, "this bundle does rerank"),
        (Head(task="fill-mask"), {}, "this bundle does fill-mask"),
        (Head(task="token-classification", labels=NAMES), {}, "this bundle does token-classification"),
        (head_of(activation="Identity"), {}, "cross-encoder.*Identity"),
        (head_of(), {"thresholds": True}, "--thresholds f1 is for models whose texts may have several labels"),
        (head_of(MULTI), {"abstain_below": 0.5}, "--abstain-below is for models whose texts have exactly one label"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(head: Head, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_head(head, **{"thresholds": False, "abstain_below": None, **options})
