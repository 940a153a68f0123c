"""`EncoderConfig`: what follows from its fields, and values that no encoder can be built from."""

from dataclasses import replace
from typing import Any

import pytest

from nopad.model.config import EmbeddingModule, EncoderConfig, attention_block
from nopad.model.errors import CheckpointError

CONFIG = EncoderConfig(
    architecture="modernbert",
    task="embeddings",
    vocab_size=200,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    max_position_embeddings=512,
    norm_eps=1e-5,
    local_layers=(False, True),
)


def test_a_block_is_the_multiple_of_64_that_covers_the_half_window() -> None:
    assert [attention_block(half) for half in (0, 1, 64, 65, 128, 129)] == [64, 64, 64, 128, 128, 192]
    assert [replace(CONFIG, local_attention=width).half_window for width in (128, 129, 0)] == [64, 64, 0]
    assert replace(CONFIG, local_attention=300).block == 192


def test_the_size_of_an_embedding_follows_from_pooling_modules_and_the_cut() -> None:
    before = EmbeddingModule(kind="Dense", of_tokens=True, in_features=64, out_features=32)
    after = EmbeddingModule(kind="Dense", in_features=64, out_features=48)
    assert CONFIG.embedding_size == 64
    assert replace(CONFIG, pooling="cls+mean").embedding_size == 128
    assert replace(CONFIG, pooling="cls+mean", modules=(before,)).embedding_size == 64
    assert replace(CONFIG, pooling="cls+mean", modules=(before, after)).embedding_size == 48
    assert replace(CONFIG, truncate_dim=16).embedding_size == 16
    assert replace(CONFIG, truncate_dim=1000).embedding_size == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be positive"),
        ({"vocab_size": 2**41}, r"vocab_size must be positive and at most 2\*\*40"),
        ({"local_attention": -1}, "local_attention must not be negative"),
        ({"pad_token_id": 200}, "pad_token_id 200 is not a token id"),
        ({"num_heads": 3}, "hidden_size 64 is not a multiple of num_attention_heads 3"),
        ({"num_kv_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head size 15 is odd"),
        ({"num_layers": 3}, "layer_types has 2 entries for num_hidden_layers 3"),
        ({"activation": "swish"}, "'swish' is not supported; known: gelu, gelu_new"),
        ({"classifier_activation": "tanh"}, "'tanh' is not supported"),
    ],
)
def test_sizes_that_make_no_encoder_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: .*{message}"):
        replace(CONFIG, **changes)
