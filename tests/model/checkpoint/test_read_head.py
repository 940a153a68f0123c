"""Labels and problem types are those that transformers reads out of the same config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from reference_models import labels

from nopad.model.checkpoint.read_head import detect_task, read_head
from nopad.model.errors import CheckpointError

CLASSIFIER = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}

TAKEN: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "numbers": ({"id2label": {"0": 0, "1": 1, "2": 2}}, ("0", "1", "2")),
    "numbers of their own": ({"id2label": {"0": 4711, "1": 1010}}, ("4711", "1010")),
    "floats": ({"id2label": {"0": 0.5, "1": 1.0}}, ("0.5", "1.0")),
    "booleans": ({"id2label": {"0": False, "1": True}}, ("False", "True")),
    "strings and numbers": ({"id2label": {"0": "a", "1": 1}}, ("a", "1")),
    "another order": ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c")),
    "ids with zeros": ({"id2label": {"00": "a", "01": "b"}}, ("a", "b")),
    "label2id that says otherwise": ({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}, ("a", "b")),
    "label2id of another language": ({"id2label": {"0": "a", "1": "b"}, "label2id": {"x": 0}}, ("a", "b")),
    "num_labels beside": ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 3}, ("a", "b", "c")),
    "num_labels alone": ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
    "num_labels and null": ({"num_labels": 3, "id2label": None}, ("LABEL_0", "LABEL_1", "LABEL_2")),
    "nothing": ({}, ("LABEL_0", "LABEL_1")),
    "two in label2id alone": ({"label2id": {"neg": 0, "pos": 1}}, ("LABEL_0", "LABEL_1")),
    "label2id and num_labels": (
        {"label2id": {"a": 0, "b": 1, "c": 2}, "num_labels": 3},
        ("LABEL_0", "LABEL_1", "LABEL_2"),
    ),
    "spaces and signs": ({"id2label": {"0": "not toxic", "1": "toxic, very"}}, ("not toxic", "toxic, very")),
}


@pytest.mark.parametrize("name", TAKEN)
def test_labels_are_those_of_transformers_as_text(name: str, tmp_path: Path) -> None:
    keys, expected = TAKEN[name]
    (tmp_path / "config.json").write_text(json.dumps({**CLASSIFIER, **keys}))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert tuple(str(theirs.id2label[i]) for i in range(theirs.num_labels)) == expected
    assert read_head({**CLASSIFIER, **keys}).labels == expected


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a hole": ({"id2label": {"0": "a", "2": "b", "3": "c"}}, ("0, 2, 3", "3 outputs, 0 to 2", "1 would have no name")),
    "counted from 1": ({"id2label": {"1": "a", "2": "b"}}, ("1, 2", "0 would have no name", "from 0 without gaps")),
    "negative": ({"id2label": {"-1": "a", "0": "b"}}, ("-1, 0", "1 would have no name")),
    "one id twice": ({"id2label": {"0": "a", "00": "b"}}, ("1 would have no name",)),
    "names for ids": ({"id2label": {"neg": 0, "pos": 1}}, ("'neg'", "looks like label2id")),
    "ids that are no integers": ({"id2label": {"0.0": "a", "1.0": "b"}}, ("'0.0'", "number of an output")),
    "a list": ({"id2label": ["a", "b"]}, ("id2label is a list",)),
    "null": ({"id2label": {"0": None, "1": "x"}}, ("output 0 None", "expected a text")),
    "nested": ({"id2label": {"0": {"en": "bad"}, "1": {"en": "good"}}}, ("output 0 {'en': 'bad'}",)),
    "lists": ({"id2label": {"0": ["a"], "1": ["b"]}}, ("output 0 ['a']",)),
    "twice": ({"id2label": {"0": "a", "1": "b", "2": "a"}}, ("name each label once", "'a' appears more than once")),
    "twice as text": ({"id2label": {"0": 1, "1": "1"}}, ("'1' appears more than once",)),
    "blank": ({"id2label": {"0": "a", "1": " "}}, ("output 1 a blank name",)),
    "no Unicode": ({"id2label": {"0": "a", "1": "\ud800"}}, ("surrogate",)),
    "num_labels that says otherwise": (
        {"id2label": {"0": "a", "1": "b"}, "num_labels": 3},
        ("names 2 labels, num_labels says 3",),
    ),
    "label2id alone": ({"label2id": {"a": 0, "b": 1, "c": 2}}, ("label2id names 3 labels", "Write id2label")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_by_name(name: str) -> None:
    keys, words = REFUSED[name]
    with pytest.raises(CheckpointError) as caught:
        read_head({**CLASSIFIER, **keys})
    for word in ("config.json", *words):
        assert word in str(caught.value)


def test_labels_matter_only_to_tasks_that_have_them() -> None:
    assert read_head({**CLASSIFIER, "id2label": {"0": "a", "2": "b"}}, "embeddings").labels == ()


@pytest.mark.parametrize(
    ("labels", "said", "expected"),
    [
        (1, None, "multi_label_classification"),  # a sigmoid, as the pipeline gives one output
        (1, "regression", "regression"),
        (1, "multi_label_classification", "multi_label_classification"),
        (2, None, "single_label_classification"),
        (3, "single_label_classification", "single_label_classification"),
        (3, "multi_label_classification", "multi_label_classification"),
        (3, "regression", "regression"),
    ],
)
def test_problem_type(labels: int, said: str | None, expected: str) -> None:
    raw = {**CLASSIFIER, "num_labels": labels}
    assert read_head({**raw, "problem_type": said}).problem_type == expected
    if said is None:
        assert read_head(raw).problem_type == expected


def test_problem_types_that_mean_nothing() -> None:
    with pytest.raises(CheckpointError, match="unknown problem_type 'ranking'"):
        read_head({**CLASSIFIER, "problem_type": "ranking"})
    with pytest.raises(CheckpointError, match="needs two labels"):
        read_head({**CLASSIFIER, "num_labels": 1, "problem_type": "single_label_classification"})


def test_a_task_that_cannot_be_told_names_the_option() -> None:
    with pytest.raises(CheckpointError, match="--task"):
        detect_task({"architectures": ["BertForNextSentencePrediction"]})


@pytest.mark.parametrize(
    ("name", "extra", "task"),
    [
        ("ModernBertForSequenceClassification", {}, "text-classification"),
        ("BertForTokenClassification", {}, "token-classification"),
        ("BertForMaskedLM", {}, "fill-mask"),
        ("ModernBertModel", {}, "embeddings"),
        ("BertForSequenceClassification", labels(1), "text-classification"),
        ("BertForSequenceClassification", {**labels(1), "sentence_transformers": {}}, "rerank"),
        ("BertForSequenceClassification", {**labels(1), "sbert_ce_default_activation_function": "x"}, "rerank"),
        ("BertForSequenceClassification", {**labels(2), "sentence_transformers": {}}, "text-classification"),
    ],
)
def test_task_follows_from_the_class(name: str, extra: dict[str, Any], task: str) -> None:
    assert detect_task({"architectures": [name], **extra}) == task
