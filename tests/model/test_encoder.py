"""The packed encoder against transformers itself: same weights, CPU, fp32, absolute difference of logits."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import (
    ATTENTIONS,
    CASES,
    LENGTHS,
    TOLERANCE,
    TRANSFORMERS_4,
    Case,
    Reference,
    difference,
    labels,
    make_reference,
    packed_logits,
    token_ids,
)

from nopad.model.checkpoint.json_files import read_raw_config
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.read_config import read_config

GetReference = Callable[[str], Reference]


def compare(made: Reference, lengths: tuple[int, ...], seed: int = 0) -> None:
    """Every length alone and all in one batch, through each attention."""
    config = made.model.config
    rows = [token_ids(length, config.vocab_size, seed) for length in lengths]
    theirs = [made.logits(ids) for ids in rows]
    gaps = {}
    for name, attention in ATTENTIONS.items():
        encoder = made.encoder(attention)
        for ids, expected in zip(rows, theirs, strict=True):
            gaps[name, len(ids)] = difference(packed_logits(encoder, [ids]), [expected])
        gaps[name, "mixed"] = difference(packed_logits(encoder, rows), theirs)
    print(f"max difference {max(gaps.values()):.1e}")  # read it with -rP
    assert max(gaps.values()) <= TOLERANCE, {key: gap for key, gap in gaps.items() if gap > TOLERANCE}


@pytest.mark.parametrize("name", CASES)
def test_every_head_equals_transformers(name: str, reference: GetReference) -> None:
    compare(reference(name), LENGTHS)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_moves_the_logits(name: str, reference: GetReference) -> None:
    # Guards the test above: a parameter the references do not feel could be wrong without notice.
    encoder = reference(name).encoder()
    ids, types = token_ids(129), [0] * 60 + [1] * 69
    before = packed_logits(encoder, [ids], [types])
    generator = torch.Generator().manual_seed(11)
    for parameter_name, parameter in encoder.named_parameters():
        if parameter_name.endswith("key.bias"):
            continue  # without rotary positions softmax cancels it: the same number on every key of a query
        kept = parameter.detach().clone()
        with torch.no_grad():
            # Noise, not a factor: the norms cancel a factor on what precedes them.
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        after = packed_logits(encoder, [ids], [types])
        with torch.no_grad():
            parameter.copy_(kept)
        assert difference(after, before) > 5 * TOLERANCE, parameter_name


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_padded_batch_of_transformers_gives_the_same(architecture: str, reference: GetReference) -> None:
    made = reference(f"{architecture}-multi{'-mean' if architecture == 'modernbert' else ''}")
    rows = [token_ids(length) for length in LENGTHS]
    padded = torch.zeros(len(rows), max(LENGTHS), dtype=torch.int64)
    for i, ids in enumerate(rows):
        padded[i, : len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        theirs = made.model(input_ids=padded, attention_mask=(padded != 0).long()).logits
    gap = difference(packed_logits(made.encoder(), rows), list(theirs))
    print(f"max difference {gap:.1e}")
    assert gap <= TOLERANCE


VARIANTS: dict[str, dict[str, Any]] = {
    "local-1": {"local_attention": 1},
    "local-2": {"local_attention": 2},
    "local-3": {"local_attention": 3},
    "local-37": {"local_attention": 37},
    "local-130": {"local_attention": 130},  # half window 65: block 128
    "local-300": {"local_attention": 300},  # half window 150: block 192
    "biases": {k: True for k in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")},
    "head-16": {"hidden_size": 64, "num_attention_heads": 4},
    "head-24": {"hidden_size": 96, "num_attention_heads": 4},
    "head-32": {"hidden_size": 64, "num_attention_heads": 2},
    "head-64": {"hidden_size": 128, "num_attention_heads": 2},
    "every-2": {"global_attn_every_n_layers": 2},
    "all-global": {"global_attn_every_n_layers": 1},
    "no-neighbours": {"local_attention": 0},
    "thetas": {"global_rope_theta": 80000.0, "local_rope_theta": 500.0},
    "norm-eps": {"norm_eps": 1e-2},
    "relu": {"hidden_activation": "relu", "classifier_activation": "silu"},
    "tanh": {"hidden_activation": "gelu_pytorch_tanh", "classifier_activation": "gelu_new"},
    "mmbert": {
        "vocab_size": 333,
        "global_rope_theta": 160000,
        "local_rope_theta": 160000,
        "position_embedding_type": "sans_pos",
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_modernbert_settings(variant: str, tmp_path: Path) -> None:
    config = {**labels(3), **VARIANTS[variant]}
    case = Case(name=variant, architecture="modernbert", task="text-classification", config=config)
    compare(make_reference(case, tmp_path), (1, 2, 65, 129, 512))


@pytest.mark.parametrize("heads", [4, 1])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_bert_settings(heads: int, activation: str, tmp_path: Path) -> None:
    config = {**labels(3), "num_attention_heads": heads, "hidden_act": activation, "layer_norm_eps": 1e-5}
    case = Case(name="bert", architecture="bert", task="text-classification", config=config)
    compare(make_reference(case, tmp_path), (1, 2, 65, 129, 512))


def test_settings_left_out_mean_transformers_defaults(tmp_path: Path) -> None:
    # nopad repeats these defaults: window 128, every third layer global, thetas 160000 and 10000, norm_eps 1e-5.
    left_out = ("local_attention", "global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    case = Case(name="defaults", architecture="modernbert", task="fill-mask", without=left_out)
    made = make_reference(case, tmp_path)
    assert not set(left_out) & set(read_raw_config(tmp_path))
    compare(made, (1, 129, 300))


NEW_SPELLING = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "num_hidden_layers": 5,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 70000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
    },
    # A file that transformers 5 wrote has none of these; here they would mislead whoever read them first.
    "global_attn_every_n_layers": 3,
}


def test_new_spelling_is_read() -> None:
    config = read_config({**CASES_RAW, **NEW_SPELLING})
    assert config.local_layers == (True, False, True, True, False)
    assert (config.global_rope.rope_theta, config.local_rope.rope_theta) == (70000.0, 3000.0)


CASES_RAW: dict[str, Any] = {
    "model_type": "modernbert",
    "architectures": ["ModernBertModel"],
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
}


@pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4.57 does not read layer_types and rope_parameters")
def test_new_spelling_with_irregular_layers(tmp_path: Path) -> None:
    case = Case(name="new", architecture="modernbert", task="fill-mask", config=NEW_SPELLING)
    compare(make_reference(case, tmp_path), (1, 2, 65, 129, 512))


def test_config_as_transformers_writes_it(tmp_path: Path) -> None:
    config = {**labels(3), "global_rope_theta": 70000.0, "local_rope_theta": 3000.0, "global_attn_every_n_layers": 2}
    case = Case(name="own", architecture="modernbert", task="text-classification", config=config)
    made = make_reference(case, tmp_path, keep_config=False)
    compare(made, (1, 129, 512))
    ours = load_checkpoint(tmp_path).config
    assert ours.local_layers == (False, True, False, True)
    assert ours.labels == ("class 0", "class 1", "class 2")


@pytest.mark.skipif(not TRANSFORMERS_4, reason="transformers 5 does not accept local_rope_theta null")
def test_local_theta_null_means_the_global_one(tmp_path: Path) -> None:
    config = {**labels(3), "local_rope_theta": None}
    case = Case(name="null", architecture="modernbert", task="text-classification", config=config)
    compare(make_reference(case, tmp_path), (129,))


def test_old_bert_norm_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made = make_reference(CASES["bert-mlm"], tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    assert sum(name.endswith((".gamma", ".beta")) for name in renamed) == 16
    save_file(renamed, path)
    compare(made, (1, 129))


@pytest.mark.parametrize("name", ["modernbert-single-mean", "bert-mlm"])
def test_sharded_weights(name: str, tmp_path: Path) -> None:
    made = make_reference(CASES[name], tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    compare(made, (1, 129))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ["bert-single", "bert-rerank", "bert-token", "bert-embed-default"])
def test_bert_pairs(name: str, attention: str, reference: GetReference) -> None:
    made = reference(name)
    rows = [token_ids(length, seed=5) for length in (2, 64, 129, 512)]
    types = [[0] * (len(ids) // 3) + [1] * (len(ids) - len(ids) // 3) for ids in rows]
    theirs = [made.logits(ids, kinds) for ids, kinds in zip(rows, types, strict=True)]
    encoder = made.encoder(ATTENTIONS[attention])
    gap = difference(packed_logits(encoder, rows, types), theirs)
    print(f"max difference {gap:.1e}")
    assert gap <= TOLERANCE
    assert difference(packed_logits(encoder, rows), theirs) > 100 * TOLERANCE, "token types must matter"


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("length", [2048, 8192])
def test_long_sequences(length: int, attention: str, tmp_path: Path) -> None:
    # One head, two layers (global, local): transformers' mask alone is 8192 x 8192.
    config = {**labels(3), "num_hidden_layers": 2, "num_attention_heads": 1, "max_position_embeddings": 8192}
    case = Case(name="long", architecture="modernbert", task="token-classification", config=config)
    made = make_reference(case, tmp_path)
    ids = token_ids(length)
    gap = difference(packed_logits(made.encoder(ATTENTIONS[attention]), [ids]), [made.logits(ids)])
    print(f"max difference {gap:.1e}")
    assert gap <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text-classification", "fill-mask"])
def test_true_base_configuration(task: str, tmp_path: Path) -> None:
    config = {
        "vocab_size": 50368,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "max_position_embeddings": 8192,
        "pad_token_id": 50283,
    }
    # Matrices as initialised: with 50368 larger logits per token, rounding alone would come near the bound.
    case = Case(name="base", architecture="modernbert", task=task, config=config, scale=1.0)
    made = make_reference(case, tmp_path)
    compare(made, (1, 65, 129, 512))


def test_difference_feels_a_nan() -> None:
    nan = torch.tensor([math.nan, 0.0])
    assert difference([nan], [torch.zeros(2)]) > TOLERANCE
