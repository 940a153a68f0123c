"""EuroBERT and UltraBERT in the packed encoder, against transformers 5, which has both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import (
    ATTENTIONS,
    EURO_CASES,
    EUROBERT,
    TOLERANCE,
    TRANSFORMERS_4,
    ULTRABERT,
    Case,
    Reference,
    difference,
    labels,
    make_reference,
    packed_logits,
    token_ids,
)

from nopad.export.graph.precision import cast
from nopad.model.checkpoint.initialize import initialize
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.save import config_json, write_checkpoint
from nopad.model.encoder import build_encoder
from nopad.model.errors import CheckpointError

needs_5 = pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4.57 has neither architecture")
# Edges of UltraBERT's window (128 on either side) and of its blocks of 128.
LENGTHS = (1, 2, 127, 128, 129, 130, 257, 400)
EURO = {**EUROBERT, "architectures": ["EuroBertForSequenceClassification"]}
ULTRA = {**ULTRABERT, "architectures": ["UltrabertForSequenceClassification"]}


def compare(made: Reference, lengths: tuple[int, ...] = LENGTHS) -> None:
    rows = [token_ids(length) for length in lengths]
    theirs = [made.logits(ids) for ids in rows]
    for attention in ATTENTIONS.values():
        encoder = made.encoder(attention)
        assert difference(packed_logits(encoder, rows), theirs) <= TOLERANCE
        assert difference(packed_logits(encoder, rows[-2:-1]), theirs[-2:-1]) <= TOLERANCE


@needs_5
@pytest.mark.parametrize("name", EURO_CASES)
def test_every_head_equals_transformers(name: str, tmp_path: Path) -> None:
    compare(make_reference(EURO_CASES[name], tmp_path))


SETTINGS: dict[str, dict[str, Any]] = {
    "one head of keys": {"num_key_value_heads": 1},
    "all heads": {"num_key_value_heads": None},
    "wide heads": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "gelu": {"hidden_act": "gelu"},
    "epsilon": {"rms_norm_eps": 1e-2},
}


@needs_5
@pytest.mark.parametrize("architecture", ["eurobert", "ultrabert"])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, architecture: str, tmp_path: Path) -> None:
    case = Case(name=name, architecture=architecture, task="fill-mask", config=SETTINGS[name])
    compare(make_reference(case, tmp_path), (1, 129, 300))


ULTRA_SETTINGS: dict[str, dict[str, Any]] = {
    "first checkpoints": {"attention_windows": [32, None, 32, None], "rope_theta": [5e3, 7e4, 5e3, 7e4]},
    "window": {"sliding_window": 40},
    "all global": {"layer_types": ["full_attention"] * 4},
    "all local": {"layer_types": ["sliding_attention"] * 4},
    "thetas": {
        "rope_parameters": {
            "full_attention": {"rope_type": "yarn", "rope_theta": 9e4, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300},
        }
    },
}


@needs_5
@pytest.mark.parametrize("name", ULTRA_SETTINGS)
def test_ultrabert_settings(name: str, tmp_path: Path) -> None:
    case = Case(name=name, architecture="ultrabert", task="fill-mask", config=ULTRA_SETTINGS[name])
    compare(make_reference(case, tmp_path), (1, 39, 40, 41, 42, 129, 300))


def test_remote_code_is_not_asked_for(tmp_path: Path) -> None:
    # EuroBERT's first checkpoints name their own code; nopad has the architecture and does not touch it.
    encoder = build_encoder(read_config({**EURO, **labels(3)}))
    initialize(encoder)
    raw = {**EURO, **labels(3), "auto_map": {"AutoModel": "modeling_eurobert.EuroBertModel"}}
    write_checkpoint(encoder, raw, tmp_path)
    (tmp_path / "modeling_eurobert.py").write_text("raise SystemExit('remote code has run')")
    opened = load_checkpoint(tmp_path)
    ids = token_ids(70)
    assert difference(packed_logits(opened.encoder, [ids]), packed_logits(encoder, [ids])) == 0.0


@pytest.mark.parametrize("name", EURO_CASES)
def test_a_checkpoint_moves_both_ways(name: str, tmp_path: Path) -> None:
    case = EURO_CASES[name]
    raw = {**(EUROBERT if case.architecture == "eurobert" else ULTRABERT), **case.config}
    encoder = build_encoder(read_config(raw, task=case.task, pooling=case.load.get("pooling")))  # type: ignore[arg-type]
    initialize(encoder)
    write_checkpoint(encoder, raw, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    again = load_checkpoint(tmp_path, **case.load)
    ids = token_ids(70)
    if not case.load:
        assert again.config == encoder.encoder_config
        assert difference(packed_logits(again.encoder, [ids]), packed_logits(encoder, [ids])) == 0.0
    assert written["architectures"] == [again.config.hf_class]
    if not TRANSFORMERS_4:
        import transformers

        assert hasattr(transformers, again.config.hf_class)


@pytest.mark.parametrize(
    ("name", "task", "fresh"),
    [
        ("eurobert-mlm", "text-classification", {"dense.weight", "dense.bias", "classifier.weight", "classifier.bias"}),
        ("eurobert-embed-default", "token-classification", {"classifier.weight", "classifier.bias"}),
        ("ultrabert-mlm", "text-classification", {"classifier.weight", "classifier.bias"}),
    ],
)
@needs_5
def test_a_classifier_is_trained_on_a_pretrained_encoder(name: str, task: Any, fresh: set[str], tmp_path: Path) -> None:
    made = make_reference(EURO_CASES[name], tmp_path)
    checkpoint = load_checkpoint(tmp_path, task=task, new_head=True)
    assert set(checkpoint.missing) == fresh
    theirs = {key.removeprefix("model."): value for key, value in made.model.named_parameters()}
    for key, value in checkpoint.encoder.named_parameters():
        if key not in fresh:
            assert torch.equal(value, theirs[key.removeprefix("model.")]), key


def test_norms_and_logits_stay_fp32_in_half_precision() -> None:
    encoder = build_encoder(read_config({**ULTRA, **labels(3)}))
    initialize(encoder)
    half = cast(encoder, "fp16")
    kinds = {name: parameter.dtype for name, parameter in half.named_parameters()}
    assert {kinds[name] for name in kinds if "norm" in name} == {torch.float32}
    assert kinds["model.embed_tokens.weight"] == kinds["model.layers.0.mlp.up_proj.weight"] == torch.float16
    ids = token_ids(200)
    gap = difference(packed_logits(half, [ids]), packed_logits(encoder, [ids]))
    assert 0 < gap < 5e-3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({**EURO, "num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    "no heads": ({**EURO, "num_key_value_heads": 0}, "num_key_value_heads must be positive"),
    "odd head": ({**EURO, "head_dim": 15}, "head size 15 is odd"),
    "pooling": ({**EURO, "classifier_pooling": "max"}, "pooling 'max' is not eurobert's .*; it has cls, mean, late"),
    "pooling of its first code": ({**EURO, "clf_pooling": "mean"}, "clf_pooling 'mean' is a key of EuroBERT's first"),
    "pooling of another": ({**ULTRA, "classifier_pooling": "late"}, "pooling 'late' is not ultrabert's"),
    "rope for each kind": (
        {**EURO, "rope_parameters": {"full_attention": {"rope_theta": 7}}},
        "rope_parameters of EuroBERT is one object for all layers",
    ),
    "rope_scaling": ({**ULTRA, "rope_scaling": {"rope_type": "linear", "factor": 2}}, "UltraBERT has no rope_scaling"),
    "half of the ropes": (
        {**ULTRA, "rope_parameters": {"full_attention": {"rope_theta": 7}}},
        "rope_parameters lacks the rope_theta of sliding_attention",
    ),
    "layer count": ({**ULTRA, "layer_types": ["full_attention"]}, "layer_types has 1 entries for num_hidden_layers 4"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_right_is_refused(why: str) -> None:
    raw, message = REFUSED[why]
    with pytest.raises(CheckpointError, match=message):
        read_config(raw)


def test_the_pooling_asked_for_is_written() -> None:
    for name in ("bos", "mean", "late"):
        raw = {**EURO, "classifier_pooling": name}
        assert config_json(raw, read_config(raw))["classifier_pooling"] == name
