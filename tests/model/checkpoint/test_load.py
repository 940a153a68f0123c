"""What read_config and the checkpoint reader take, and how they refuse the rest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import BERT, MODERNBERT, Reference, labels
from safetensors.torch import load_file, save_file

from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.json_files import read_raw_config
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.weights import weight_files
from nopad.model.errors import CheckpointError, NopadError

GetReference = Callable[[str], Reference]
CLASSIFIER = {**MODERNBERT, "architectures": ["ModernBertForSequenceClassification"]}
BERT_CLASSIFIER = {**BERT, "architectures": ["BertForSequenceClassification"]}

# change to a good config.json -> telling part of the message
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model_type": ({"model_type": "roberta"}, "'roberta' has no packed encoder.*--exporter padded"),
    "no model_type": ({"model_type": None}, "model_type None"),
    "no architectures": ({"architectures": None}, "does not tell the task; name it with --task .*fill-mask"),
    "other head": ({"architectures": ["ModernBertForQuestionAnswering"]}, "QuestionAnswering.*--task"),
    "problem_type": ({"problem_type": "ranking"}, "unknown problem_type 'ranking'; known: single_label"),
    "pooling": ({"classifier_pooling": "max"}, "pooling 'max' is not ModernBERT's; it has cls and mean"),
    "head size": ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of num_attention_heads 5"),
    "odd head": ({"hidden_size": 66, "num_attention_heads": 22}, "head size 3 is odd"),
    "head_dim": ({"head_dim": 16}, "head_dim 16 is not hidden_size / num_attention_heads, 32"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "layer pattern 0": ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
    "activation": ({"hidden_activation": "mish"}, "activation 'mish' is not supported; known ones: gelu, gelu_new"),
    "head activation": ({"classifier_activation": "tanhh"}, "activation 'tanhh' is not supported"),
    "layer type": ({"layer_types": ["full_attention"] * 3 + ["chunked"]}, r"unknown layer_types \['chunked'\]"),
    "layer count": ({"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries for num_hidden_layers 4"),
    "one class": (
        {**labels(1), "problem_type": "single_label_classification"},
        "single_label_classification needs two labels, this has one",
    ),
    "architectures null": ({"architectures": [None]}, r"architectures \[None\] does not tell the task"),
    "architectures number": ({"architectures": 5}, "architectures 5 does not tell the task"),
    "a word as size": ({"hidden_size": "wide"}, "a value has the wrong type.*'wide'"),
    "null size": ({"vocab_size": None}, "a value has the wrong type"),
    "endless size": ({"vocab_size": float("inf")}, "a value has the wrong type"),
    "no vocabulary": ({"vocab_size": 0}, "vocab_size must be positive .* got 0"),
    "negative size": ({"intermediate_size": -5}, "intermediate_size must be positive .* got -5"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be positive .* got 0"),
    "no positions": ({"max_position_embeddings": 0}, "max_position_embeddings must be positive .* got 0"),
    "padding id": ({"pad_token_id": 200}, "pad_token_id 200 is no token id; vocab_size is 200"),
    "negative padding id": ({"pad_token_id": -1}, "pad_token_id -1 is no token id"),
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


# --- the folder


@pytest.fixture
def folder(reference: GetReference, tmp_path: Path) -> Path:
    """A good ModernBERT classifier to damage."""
    return Path(shutil.copytree(reference("modernbert-single-cls").folder, tmp_path / "checkpoint"))


def test_errors_are_bad_input_for_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert isinstance(caught.value, NopadError) and caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has weights .model.safetensors. but no config.json, so it is not a checkpoint folder"),
        (b'{"model_type": "modernb', "config.json is not valid JSON"),
        (b"\xff\xfe\x00", "config.json is not valid JSON"),
        (b"[1, 2]", "config.json holds a JSON list, expected an object"),
    ],
)
def test_broken_config_json(content: bytes | None, message: str, folder: Path) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=message):
        read_raw_config(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_pickle_is_refused_with_the_way_out_and_never_opened(name: str, folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "opened"
    (folder / "model.safetensors").unlink()
    torch.save({"x": _Trap(trap)}, folder / name)
    message = f"pickle \\({name}\\).*safetensors only. Convert.*save_pretrained\\(DIR, safe_serialization=True\\)"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
    assert not trap.exists()


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_beside_safetensors_is_not_in_the_way(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert weight_files(folder) == [folder / "model.safetensors"]


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_truncated_safetensors(kept: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged or cut short.*copy or save it again"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["other.safetensors", "../checkpoint/model.safetensors"])
def test_shard_that_is_not_in_the_folder(name: str, folder: Path) -> None:
    # The second one exists, but a shard's name must not lead out of the folder.
    (folder / "model.safetensors").rename(folder / "renamed.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=f"names the shard '{name}', which is not in"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": []}'])
def test_broken_shard_index(content: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="index.json"):
        load_checkpoint(folder)


def test_missing_weights_are_counted_and_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.attn.Wo.weight"]
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .* first 'model\.layers\.1\.attn\.Wo\.weight'"):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="lacks 1 weights"):
        load_checkpoint(folder, new_head=True)  # a hole in the encoder is no new head


def test_wrong_shapes_are_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'model\..*' has shape .*, config.json asks for"):
        load_checkpoint(folder, config_changes={"intermediate_size": 128})


@pytest.mark.parametrize("size", ["hidden_size", "intermediate_size", "vocab_size"])
def test_absurd_sizes_take_no_memory(size: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json asks for"):
        load_checkpoint(folder, config_changes={size: 2**28})
    with pytest.raises(CheckpointError, match="config.json asks for|no memory for an encoder of its sizes"):
        load_checkpoint(folder, config_changes={size: 2**40})
    with pytest.raises(CheckpointError, match=rf"{size} must be positive and at most 2\*\*40"):
        load_checkpoint(folder, config_changes={size: 2**62})


@pytest.mark.parametrize(
    ("name", "decoder"), [("modernbert-mlm", "decoder.weight"), ("bert-mlm", "cls.predictions.decoder.weight")]
)
def test_tied_weights_stored_twice(name: str, decoder: str, reference: GetReference, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reference(name).folder, tmp_path / "tied"))
    path = folder / "model.safetensors"
    weights = load_file(path)
    embedding = next(key for key in weights if "tok_embeddings" in key or "word_embeddings" in key)
    save_file({**weights, decoder: weights[embedding].clone()}, path)
    assert load_checkpoint(folder).config.tie_word_embeddings
    save_file({**weights, decoder: weights[embedding] * 1.5}, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    for part in (repr(embedding), repr(decoder), "different values", "set tie_word_embeddings to false"):
        assert part in str(caught.value)
    state = load_checkpoint(folder, config_changes={"tie_word_embeddings": False}).encoder.state_dict()
    assert torch.equal(state[decoder], state[embedding] * 1.5)


def test_classifier_of_another_size(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has 3 outputs .*config.json names 7 labels"):
        load_checkpoint(folder, config_changes=labels(7))
    loaded = load_checkpoint(folder, config_changes=labels(7), new_head=True)
    assert loaded.missing == ("classifier.weight", "classifier.bias")
    assert loaded.config.num_labels == 7


def test_headless_checkpoint_needs_new_head(reference: GetReference) -> None:
    folder = reference("modernbert-mlm").folder
    with pytest.raises(CheckpointError, match="lacks 2 weights that ModernBertForSequenceClassification needs"):
        load_checkpoint(folder, task="text-classification")
    loaded = load_checkpoint(folder, task="text-classification", new_head=True)
    assert loaded.missing == ("classifier.weight", "classifier.bias")
    before = load_file(folder / "model.safetensors")
    after = loaded.encoder.state_dict()
    for name in ("model.embeddings.tok_embeddings.weight", "model.layers.2.mlp.Wi.weight", "head.dense.weight"):
        assert torch.equal(after[name], before[name])


def test_bert_without_pooler_gets_a_new_one_for_classification(reference: GetReference) -> None:
    loaded = load_checkpoint(reference("bert-mlm").folder, task="text-classification", new_head=True)
    assert set(loaded.missing) == {f"{n}.{k}" for n in ("classifier", "bert.pooler.dense") for k in ("weight", "bias")}


def test_new_head_does_not_cover_another_architectures_weights(reference: GetReference, folder: Path) -> None:
    shutil.copy(reference("bert-single").folder / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="lacks"):
        load_checkpoint(folder, new_head=True)


def test_half_precision_weights_are_loaded_as_fp32(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    assert {parameter.dtype for parameter in load_checkpoint(folder).encoder.parameters()} == {torch.float32}


# --- names


def test_resolve_takes_a_folder_and_refuses_what_is_none(folder: Path, tmp_path: Path) -> None:
    assert resolve_checkpoint(folder) == folder
    assert resolve_checkpoint(str(folder)) == folder
    with pytest.raises(CheckpointError, match="is a file; give the checkpoint's folder"):
        resolve_checkpoint(folder / "config.json")
    for name in (tmp_path / "none", "./none", "~/none", "a/b/c"):
        with pytest.raises(CheckpointError, match="no checkpoint at .*the folder does not exist"):
            resolve_checkpoint(name)
