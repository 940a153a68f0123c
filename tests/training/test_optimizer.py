"""Frozen layers and layer-wise learning rates: weights bit-equal, rates exact, no backward below the trained part."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_samples import CONFIG, sentences, weights, write_jsonl

from nopad.model.checkpoint.initialize import initialize
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.save import write_checkpoint
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.runtime.cli import run
from nopad.training.optimizer import freeze, parameter_groups

BERT: dict[str, Any] = {key: CONFIG[key] for key in CONFIG if "layers" in key or "size" in key or "num_" in key}
BERT |= {"model_type": "bert", "max_position_embeddings": 256, "pad_token_id": 0}
EUROBERT = {**CONFIG, "model_type": "eurobert", "clf_pooling": "mean"}
CONFIGS = {"modernbert": CONFIG, "bert": BERT, "eurobert": EUROBERT}
LAYER = {"modernbert": "model.layers.{}.", "bert": "bert.encoder.layer.{}.", "eurobert": "model.layers.{}."}
EMBEDDINGS = {"modernbert": "model.embeddings.", "bert": "bert.embeddings.", "eurobert": "model.embed_tokens."}
ARCHITECTURES = tuple(CONFIGS)


def encoder_of(architecture: str) -> PackedEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(read_config(CONFIGS[architecture], task="text-classification"))
    initialize(encoder)
    return encoder


@pytest.fixture(scope="module")
def pretrained(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ModernBERT of three layers with random weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("pretrained")
    write_checkpoint(encoder_of("modernbert"), CONFIG, folder)
    (folder / "tokenizer.json").write_bytes((scratch / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_bytes((scratch / "tokenizer_config.json").read_bytes())
    return folder


def train(pretrained: Path, tmp_path: Path, *options: str) -> int:
    rows = write_jsonl(tmp_path / "rows.jsonl", sentences(40))
    start = ["train", "--train", str(rows), "--model", str(pretrained), "--output", str(tmp_path / "out"), "--quiet"]
    return run([*start, "--epochs", "1", "--max-length", "64", "--threads", "1", "--learning-rate", "1e-3", *options])


@pytest.mark.parametrize("layers", [0, 2])
def test_frozen_weights_are_bit_equal_and_the_others_are_not(pretrained: Path, tmp_path: Path, layers: int) -> None:
    assert train(pretrained, tmp_path, "--freeze-layers", str(layers), "--weight-decay", "0.1") == 0
    before, after = weights(pretrained), weights(tmp_path / "out")
    frozen = ("model.embeddings.", *(f"model.layers.{i}." for i in range(layers)))
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert same == {name for name in after if name.startswith(frozen)}


def test_more_layers_than_there_are_is_refused(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(pretrained, tmp_path, "--freeze-layers", "4") == 2
    assert "--freeze-layers 4: the model has only 3 layers" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_parameter_has_the_rate_of_its_depth(architecture: str) -> None:
    encoder = encoder_of(architecture)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    decayed = {name for name in names.values() if name.endswith("dense.weight")}
    groups = parameter_groups(encoder, learning_rate=1e-3, weight_decay=0.1, layer_decay=0.5, decayed=decayed)
    expected = dict.fromkeys(names.values(), 1e-3)
    for name in expected:
        if name.startswith(EMBEDDINGS[architecture]):
            expected[name] = 1e-3 * 0.5**4
        for i in range(3):
            if name.startswith(LAYER[architecture].format(i)):
                expected[name] = 1e-3 * 0.5 ** (3 - i)
    assert len(set(expected.values())) == 5
    rates = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert rates == expected
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if names[id(parameter)] in decayed else 0.0)


def test_without_layer_decay_there_are_two_groups_of_one_rate() -> None:
    encoder = encoder_of("modernbert")
    groups = parameter_groups(
        encoder, learning_rate=1e-3, weight_decay=0.1, layer_decay=1.0, decayed={"classifier.bias"}
    )
    assert [group["lr"] for group in groups] == [1e-3, 1e-3]
    assert sum(len(group["params"]) for group in groups) == len(list(encoder.parameters()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_layers_have_no_backward(architecture: str) -> None:
    encoder = encoder_of(architecture).train()
    freeze(encoder, 2)
    backbone = encoder.backbone()
    layers = backbone.encoder.layer if architecture == "bert" else backbone.layers
    needs_gradient: list[bool] = []
    for layer in layers:
        layer.register_forward_hook(lambda _module, _inputs, output: needs_gradient.append(output.requires_grad))
    tokens = torch.arange(64)
    encoder(tokens + 5, tokens, torch.zeros(64, dtype=torch.long), tokens[None])
    assert needs_gradient == [False, False, True]
    frozen = [parameter for parameter in encoder.parameters() if not parameter.requires_grad]
    grouped = parameter_groups(encoder, learning_rate=1.0, weight_decay=0.0, layer_decay=0.9, decayed=())
    assert frozen and len(frozen) + sum(len(group["params"]) for group in grouped) == len(list(encoder.parameters()))


def test_layer_decay_from_the_command_line_moves_low_layers_less(pretrained: Path, tmp_path: Path) -> None:
    assert train(pretrained, tmp_path, "--layer-decay", "0.1") == 0
    before, after = weights(pretrained), weights(tmp_path / "out")
    moved = [
        (before[name] - after[name]).abs().max().item()
        for i in range(3)
        for name in [f"model.layers.{i}.mlp.Wi.weight"]
    ]
    assert 0 < 5 * moved[0] < moved[1] and 5 * moved[1] < moved[2]
    assert load_checkpoint(tmp_path / "out").raw_config["nopad_training"]["recipe"]["layer_decay"] == 0.1
