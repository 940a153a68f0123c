"""What logits mean: scores and decisions are those of transformers' pipelines, and the same for every caller."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nopad.bench.subjects.agreement import accuracy, compare
from nopad.export.int8.quantize import label_reader
from nopad.export.parity.accuracy import equal_rows, evaluate
from nopad.model.head import PROBLEM_TYPES, SCORE_ACTIVATIONS, TASKS, Head, ProblemType, softmax
from nopad.runtime import decode
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import AnsweredBy

FAKE = AnsweredBy("fake", "fp32")
SINGLE, MULTI, REGRESSION = PROBLEM_TYPES
NAMES = ("a", "b", "c")
TOKENS = Tokens(text="a", input_ids=[1], token_type_ids=[0], tokens=1, offsets=[(0, 1)], special=[0], pieces=["a"])
Logits = np.ndarray[Any, np.dtype[np.float32]]


def classifier(problem_type: ProblemType = SINGLE, labels: tuple[str, ...] = NAMES, **fields: Any) -> Head:
    return Head(**{"task": "text-classification", "labels": labels, "problem_type": problem_type, **fields})


def several_texts(labels: int = 3) -> st.SearchStrategy[Logits]:
    shapes = array_shapes(min_dims=2, max_dims=2, max_side=9).map(lambda shape: (shape[0], labels))
    return arrays(np.float32, shapes, elements=st.floats(-100, 100, width=32))


# --- probabilities


@pytest.mark.parametrize(
    ("problem_type", "count"), [(SINGLE, 2), (SINGLE, 3), (MULTI, 1), (MULTI, 3), (REGRESSION, 1), (REGRESSION, 3)]
)
def test_scores_are_those_of_the_pipeline(problem_type: ProblemType, count: int) -> None:
    logits = np.random.default_rng(count).normal(0, 4, (50, count)).astype(np.float32)
    config = transformers.BertConfig(num_labels=count, problem_type=problem_type)
    # Its last step alone, which asks for no weights.
    pipe = transformers.TextClassificationPipeline.__new__(transformers.TextClassificationPipeline)
    pipe.model, pipe.framework = SimpleNamespace(config=config), "pt"
    got = classifier(problem_type, NAMES[:count]).probabilities(logits)
    assert got.dtype == np.float32
    for row, scores in zip(logits, got, strict=True):
        theirs = pipe.postprocess({"logits": torch.tensor(row[None])}, top_k=None)
        assert scores == pytest.approx(
            [item["score"] for item in sorted(theirs, key=lambda item: item["label"])], abs=1e-6
        )


def test_every_activation_is_torchs() -> None:
    logits = torch.tensor([[-90.0, -3.0, 0.0, 2.5, 90.0]])
    for name, activate in SCORE_ACTIVATIONS.items():
        layer = torch.nn.Softmax(dim=-1) if name == "Softmax" else getattr(torch.nn, name)()
        assert np.allclose(activate(logits.numpy()), layer(logits).numpy(), atol=1e-6), name


@given(several_texts())
def test_an_activation_keeps_the_order_of_the_logits(logits: Logits) -> None:
    for name in SCORE_ACTIVATIONS:
        scores = classifier(activation=name).probabilities(logits)
        ordered = np.take_along_axis(scores, np.argsort(-logits, kind="stable", axis=-1), -1)
        assert (np.diff(ordered, axis=-1) <= 1e-6 * np.abs(ordered).max()).all(), name


def test_a_reranker_answers_a_sigmoid_and_a_cross_encoder_what_it_names() -> None:
    logits = np.array([[0.0], [2.0]], dtype=np.float32)
    rerank = Head(task="rerank", labels=("a",))
    assert rerank.probabilities(logits)[:, 0] == pytest.approx([0.5, 0.8807971])
    assert (Head(task="rerank", labels=("a",), activation="Identity").probabilities(logits) == logits).all()
    assert Head(task="token-classification", labels=NAMES).probabilities(np.zeros((2, 5, 3), np.float32))[1, 4] == (
        pytest.approx([1 / 3] * 3)
    )


@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_a_temperature_divides_the_logits(temperature: float) -> None:
    logits = np.array([[1, 4, -2]], dtype=np.float32)
    for fields in ({}, {"problem_type": MULTI}, {"activation": "Tanh"}):
        head = classifier(**fields, temperature=temperature)
        scaled = classifier(**fields).probabilities(logits / np.float32(temperature))
        assert (head.probabilities(logits) == scaled).all() and head.probabilities(logits).dtype == np.float32
        assert (head.decide(logits) == classifier(**fields).decide(logits / np.float32(temperature))).all()
        assert (head.uncalibrated.probabilities(logits) == classifier(**fields).probabilities(logits)).all()


# --- decisions


def test_what_decides_on_a_label() -> None:
    heads = {task: Head(task=task) for task in TASKS}
    assert {task for task, head in heads.items() if not head.has_labels} == {"embeddings", "token-embeddings", "rerank"}
    assert [classifier(kind).has_labels for kind in PROBLEM_TYPES] == [True, True, False]
    assert [classifier(kind).multi_label for kind in PROBLEM_TYPES] == [False, True, False]
    for head, name in ((Head(task="rerank"), "rerank"), (classifier(REGRESSION), "regression")):
        with pytest.raises(ValueError, match=f"{name} has no labels to decide on"):
            head.decide(np.zeros((1, 3), np.float32))


def test_decisions_without_thresholds() -> None:
    logits = np.array([[-1, 2, 1], [0, -3, -2]], dtype=np.float32)
    assert classifier().best(logits).tolist() == [1, 0]
    assert classifier().decide(logits).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert classifier(MULTI).decide(logits).tolist() == [[0, 1, 1], [1, 0, 0]]  # 0.5 is enough
    tokens = Head(task="token-classification", labels=NAMES).decide(logits.reshape(1, 2, 3))
    assert tokens.tolist() == [[[0, 1, 0], [1, 0, 0]]]
    assert classifier().decide(logits[0]).tolist() == [0, 1, 0]


def test_each_of_several_labels_has_a_threshold_of_its_own() -> None:
    head = classifier(MULTI, thresholds=(0.9, 0.5, 0.1))
    logits = np.array([[2, 2, 2], [2.3, -0.1, -2], [-9, 0, -2.3]], dtype=np.float32)
    assert head.decide(logits).tolist() == [[0, 1, 1], [1, 0, 1], [0, 1, 0]]
    assert head.uncalibrated.decide(logits).tolist() == [[1, 1, 1], [1, 0, 0], [0, 1, 0]]
    found = [answer.labels for answer in answers_of(head, logits)]
    assert found == [("b", "c"), ("a", "c"), ("b",)]


@given(several_texts(labels=2), st.floats(0.01, 0.99), st.floats(0.1, 10))
def test_of_two_labels_the_second_is_chosen_from_its_threshold_on(
    logits: Logits, threshold: float, temperature: float
) -> None:
    head = classifier(labels=("no", "yes"), thresholds=(1 - threshold, threshold), temperature=temperature)
    chance = softmax(logits.astype(np.float64) / temperature)[:, 1]  # type: ignore[arg-type]
    clear = np.abs(chance - threshold) > 1e-6
    assert (head.best(logits) == (chance > threshold))[clear].all()


def test_equal_thresholds_leave_the_best_label() -> None:
    logits = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    assert (classifier(thresholds=(0.2, 0.2, 0.2)).best(logits) == classifier().best(logits)).all()


def test_an_answer_below_the_least_score_is_abstained_from() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1]], dtype=np.float32))
    assert [answer.abstained for answer in answers_of(classifier(abstain_below=0.6), logits)] == [False, True]
    head = classifier(abstain_below=0.6, temperature=5.0)  # the score that counts is the calibrated one
    assert [answer.abstained for answer in answers_of(head, logits)] == [True, True]
    assert not any(answer.abstained for answer in answers_of(head.uncalibrated, logits))
    assert [answer.label for answer in answers_of(head, logits)] == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"thresholds": (0.5, 0.5)}, "each of the 3 labels"),
        ({"thresholds": (0.5, 1.0, 0.5)}, "between 0 and 1"),
        ({"thresholds": (0.5, float("nan"), 0.5)}, "between 0 and 1"),
        ({"problem_type": REGRESSION, "temperature": 2.0}, "a regression has no probabilities"),
        ({"problem_type": REGRESSION, "thresholds": (0.5, 0.5, 0.5)}, "a regression has no probabilities"),
        ({"abstain_below": 0.0}, "abstain_below must be a number between 0 and 1"),
        ({"abstain_below": 1.0}, "abstain_below"),
        ({"abstain_below": float("nan")}, "abstain_below"),
        ({"problem_type": MULTI, "abstain_below": 0.5}, "for texts that have exactly one label"),
        ({"task": "token-classification", "abstain_below": 0.5}, "for texts that have exactly one label"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classifier(**fields)


# --- all who ask


def answers_of(head: Head, logits: Logits) -> list[decode.Prediction]:
    return [decode.prediction(row, TOKENS, head, FAKE, None, False) for row in logits]


CALIBRATED: list[dict[str, Any]] = [
    {},
    {"temperature": 2.5},
    {"thresholds": (0.9, 0.3, 0.2)},
    {"temperature": 0.5, "thresholds": (0.2, 0.7, 0.4)},
]


@pytest.mark.parametrize("fields", CALIBRATED, ids=str)
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
@given(logits=several_texts())
def test_all_who_ask_decide_alike(problem_type: ProblemType, fields: dict[str, Any], logits: Logits) -> None:
    head = classifier(problem_type, **fields)
    decided = head.decide(logits)
    # decode: the labels of each answer
    for answer, row in zip(answers_of(head, logits), decided, strict=True):
        assert set(answer.labels) == {name for name, chosen in zip(NAMES, row, strict=True) if chosen}
        assert problem_type == MULTI or answer.labels == (answer.label,)
    # the gate's accuracy
    found = evaluate(logits, logits, head, decided, (0.0, 0.0))
    assert found.accuracy == found.agreement == 1.0
    # int8
    read = label_reader(head)
    assert read is not None
    assert (read(logits) == (decided if head.multi_label else decided.argmax(-1))).all()
    # bench
    assert accuracy(list(logits), decided, head) == 1.0 == compare(list(logits), list(logits), head)[0]
    # training
    assert equal_rows(decided, head.decide(logits)) == 1.0


@given(logits=several_texts())
def test_a_regression_decides_nothing_anywhere(logits: Logits) -> None:
    head = classifier(REGRESSION)
    assert (head.probabilities(logits) == logits).all()
    found = evaluate(logits, logits, head, logits.astype(float), (0.0, 0.0))
    assert (found.mse, found.accuracy, found.agreement) == (0.0, None, None)
    assert label_reader(head) is None
    assert accuracy(list(logits), logits.astype(float), head) is None
    assert compare(list(logits), list(logits), head) == (None, 0.0)
    for answer, row in zip(answers_of(head, logits), logits, strict=True):
        assert answer.score == row.max() and answer.label == NAMES[row.argmax()]
