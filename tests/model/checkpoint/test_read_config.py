"""A config.json -> `EncoderConfig`: what is read, and how the rest is refused."""

from typing import Any

import pytest
from reference_models import BERT, MODERNBERT, labels

from nopad.model.checkpoint.read_config import read_config
from nopad.model.errors import CheckpointError

CLASSIFIER = {**MODERNBERT, "architectures": ["ModernBertForSequenceClassification"]}
BERT_CLASSIFIER = {**BERT, "architectures": ["BertForSequenceClassification"]}

# change to a good config.json -> telling part of the message
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model_type": ({"model_type": "roberta"}, "'roberta' has no packed encoder.*--exporter padded"),
    "no model_type": ({"model_type": None}, "model_type None"),
    "no architectures": ({"architectures": None}, "does not name the task; name it with --task .*fill-mask"),
    "other head": ({"architectures": ["ModernBertForQuestionAnswering"]}, "QuestionAnswering.*--task"),
    "problem_type": ({"problem_type": "ranking"}, "unknown problem_type 'ranking'; known: single_label"),
    "pooling": ({"classifier_pooling": "max"}, "pooling 'max' is not ModernBERT's; it has cls and mean"),
    "head size": ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of num_attention_heads 5"),
    "odd head": ({"hidden_size": 66, "num_attention_heads": 22}, "head size 3 is odd"),
    "head_dim": ({"head_dim": 16}, "head_dim 16 is not hidden_size / num_attention_heads, 32"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "layer pattern 0": ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
    "activation": ({"hidden_activation": "mish"}, "activation 'mish' is not supported; known: gelu, gelu_new"),
    "head activation": ({"classifier_activation": "tanhh"}, "activation 'tanhh' is not supported"),
    "layer type": ({"layer_types": ["full_attention"] * 3 + ["chunked"]}, r"unknown layer_types \['chunked'\]"),
    "layer count": ({"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries for num_hidden_layers 4"),
    "one class": (
        {**labels(1), "problem_type": "single_label_classification"},
        "single_label_classification needs two labels, this has one",
    ),
    "architectures null": ({"architectures": [None]}, r"architectures \[None\] does not name the task"),
    "architectures number": ({"architectures": 5}, "architectures 5 does not name the task"),
    "a word as size": ({"hidden_size": "wide"}, "a value has the wrong type.*'wide'"),
    "null size": ({"vocab_size": None}, "a value has the wrong type"),
    "endless size": ({"vocab_size": float("inf")}, "a value has the wrong type"),
    "no vocabulary": ({"vocab_size": 0}, "vocab_size must be positive .* got 0"),
    "negative size": ({"intermediate_size": -5}, "intermediate_size must be positive .* got -5"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be positive .* got 0"),
    "no positions": ({"max_position_embeddings": 0}, "max_position_embeddings must be positive .* got 0"),
    "padding id": ({"pad_token_id": 200}, "pad_token_id 200 is not a token id; vocab_size is 200"),
    "negative padding id": ({"pad_token_id": -1}, "pad_token_id -1 is not a token id"),
    "negative window": ({"local_attention": -1}, "local_attention must not be negative, got -1"),
    "negative theta": ({"global_rope_theta": -5}, "rope_theta of full_attention must be positive .* got -5"),
    "local theta of ModernBERT's own code": ({"local_rope_theta": -1}, "rope_theta of sliding_attention .* got -1"),
    "null theta": ({"global_rope_theta": None}, "a value has the wrong type"),
    "flat rope": (
        {"rope_parameters": {"rope_theta": 500, "rope_type": "default"}},
        "rope_parameters has rope_theta, rope_type, expected one object each for full_attention and sliding_attention",
    ),
    "rope word": ({"rope_parameters": "x"}, "rope_parameters is a str, expected an object"),
    "rope entry": ({"rope_parameters": {"full_attention": [1]}}, "full_attention is a list, expected an object"),
    "rope_scaling": ({"rope_scaling": "x"}, "rope_scaling is a str, expected an object"),
    "rope type": ({"rope_scaling": {"rope_type": "mrope"}}, "rope_type 'mrope' of full_attention.*default, linear"),
    "old rope type": ({"rope_parameters": {"full_attention": {"type": "xpos"}}}, "rope_type 'xpos' of full_attention"),
    "yarn by its old name": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling says type 'yarn'"),
    "linear without factor": ({"rope_scaling": {"rope_type": "linear"}}, "'linear' of full_attention lacks factor"),
    "llama3 without band": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
        "lacks high_freq_factor",
    ),
    "llama3 band": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
        "high_freq_factor 1.0 of full_attention must be larger than low_freq_factor 4.0",
    ),
    "longrope factors": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0] * 15}},
        "long_factor of full_attention must be 16 positive numbers.*it has 15",
    ),
    "factor 0": ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor of full_attention must be positive"),
    "factor word": ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, "a value has the wrong type"),
    "original length": (
        {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": -8}},
        "original_max_position_embeddings of full_attention must be positive",
    ),
    "part of a head": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5},
        "partial_rotary_factor 0.5 of full_attention is not supported with rope_type 'linear'",
    ),
}
REFUSED_BERT: dict[str, tuple[dict[str, Any], str]] = {
    "positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not"),
    "decoder": ({"is_decoder": True}, "a BERT decoder is not an encoder; is_decoder must be false"),
    "cross-attention": ({"add_cross_attention": True}, "a BERT decoder is not an encoder"),
    "activation": ({"hidden_act": "mish"}, "activation 'mish' is not supported"),
    "token types": ({"type_vocab_size": 0}, "type_vocab_size must be positive .* got 0"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_read_config_refuses(why: str) -> None:
    change, message = REFUSED[why]
    with pytest.raises(CheckpointError, match=message):
        read_config({**CLASSIFIER, **change})


@pytest.mark.parametrize("why", REFUSED_BERT)
def test_read_config_refuses_bert(why: str) -> None:
    change, message = REFUSED_BERT[why]
    with pytest.raises(CheckpointError, match=message):
        read_config({**BERT_CLASSIFIER, **change})


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
)
@pytest.mark.parametrize("raw", [CLASSIFIER, BERT_CLASSIFIER], ids=["modernbert", "bert"])
def test_read_config_names_the_missing_key(raw: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: '{key}' is missing"):
        read_config({name: value for name, value in raw.items() if name != key})


def test_read_config_refuses_arguments() -> None:
    with pytest.raises(CheckpointError, match="unknown task 'qa'; nopad has text-classification"):
        read_config(CLASSIFIER, task="qa")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="task rerank needs a checkpoint with one label, this one has 2"):
        read_config(CLASSIFIER, task="rerank")
    with pytest.raises(CheckpointError, match="pooling 'pooler' is not ModernBERT's"):
        read_config(CLASSIFIER, pooling="pooler")
    with pytest.raises(CheckpointError, match="pooling 'mean' is not BERT's for text-classification; it has pooler"):
        read_config(BERT_CLASSIFIER, pooling="mean")
    with pytest.raises(CheckpointError, match="pooling 'pooler' is not BERT's for embeddings; it has cls, mean"):
        read_config({**BERT, "architectures": ["BertModel"]}, pooling="pooler")


@pytest.mark.parametrize(("count", "problem"), [(1, "multi_label_classification"), (2, "single_label_classification")])
def test_problem_type_where_the_file_is_silent(count: int, problem: str) -> None:
    config = read_config({**CLASSIFIER, **labels(count)})
    assert config.problem_type == problem and config.num_labels == count
    assert read_config({**CLASSIFIER, **labels(count), "problem_type": "regression"}).problem_type == "regression"


def test_labels_follow_their_ids_not_their_order() -> None:
    mixed = {"id2label": {"2": "c", "0": "a", "10": "k", "1": "b", **{str(i): f"l{i}" for i in range(3, 10)}}}
    assert read_config({**CLASSIFIER, **mixed}).labels == ("a", "b", "c", *(f"l{i}" for i in range(3, 10)), "k")
    assert read_config(CLASSIFIER).labels == ("LABEL_0", "LABEL_1")
    assert read_config({**CLASSIFIER, "num_labels": 3}).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(("window", "half", "block"), [(1, 0, 64), (128, 64, 64), (129, 64, 64), (130, 65, 128)])
def test_block_covers_the_half_window(window: int, half: int, block: int) -> None:
    config = read_config({**CLASSIFIER, "local_attention": window})
    assert (config.half_window, config.block) == (half, block)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"local_rope_theta": None}, (160000.0, 160000.0)),  # the global one, as in transformers 4
        ({"rope_parameters": {"full_attention": {"rope_theta": 7}, "sliding_attention": None}}, (7.0, 10000.0)),
        ({"rope_parameters": {}, "global_rope_theta": 5}, (5.0, 10000.0)),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 9}}, (9.0, 9.0)),  # as in transformers 5
    ],
)
def test_rope_thetas(change: dict[str, Any], expected: tuple[float, float]) -> None:
    config = read_config({**CLASSIFIER, **change})
    assert (config.global_rope.rope_theta, config.local_rope.rope_theta) == expected
