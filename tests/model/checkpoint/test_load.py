"""Checkpoint folders -> encoders: weights that are missing, unknown or of another size, and new heads."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference_models import Reference, labels
from safetensors.torch import load_file, save_file

from nopad.model.checkpoint.json_files import read_raw_config
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.errors import CheckpointError, NopadError

GetReference = Callable[[str], Reference]


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
    with pytest.raises(CheckpointError, match="config.json asks for|not enough memory for an encoder of these sizes"):
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
