"""Pooling against a loop over texts, and the modules around it."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from nopad.model.attention import PackedLayout
from nopad.model.config import POOLING_MODES, EmbeddingModule, EncoderConfig
from nopad.model.embedding import build_modules, check_modules, embed, pool
from nopad.model.errors import CheckpointError
from nopad.model.packing import pack

LENGTHS, PROMPTS, WIDTH = (3, 1, 7, 5), (1, 0, 4, 2), 6
CONFIG = EncoderConfig(
    architecture="modernbert",
    task="embeddings",
    vocab_size=200,
    hidden_size=WIDTH,
    intermediate_size=8,
    num_layers=1,
    num_heads=3,
    max_position_embeddings=64,
    norm_eps=1e-5,
    local_layers=(False,),
    pooling="mean",
)


@pytest.fixture
def stream() -> tuple[Tensor, PackedLayout]:
    batch = pack([[1] * length for length in LENGTHS], multiple=64)
    layout = PackedLayout(
        position_ids=torch.from_numpy(batch.position_ids),
        sequence_ids=torch.from_numpy(batch.sequence_ids),
        pad_index=torch.from_numpy(batch.pad_index),
        half_window=-1,
        block=64,
        prompt_lengths=torch.tensor(PROMPTS),
    )
    return torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)), layout


def of_one_text(tokens: np.ndarray, mode: str) -> np.ndarray:
    places = np.arange(1, len(tokens) + 1)[:, None]
    rows = {
        "cls": lambda: tokens[0],
        "lasttoken": lambda: tokens[-1],
        "max": lambda: tokens.max(axis=0),
        "mean": lambda: tokens.mean(axis=0),
        "mean_sqrt_len_tokens": lambda: tokens.sum(axis=0) / np.sqrt(len(tokens)),
        "weightedmean": lambda: (tokens * places).sum(axis=0) / places.sum(),
    }
    return np.asarray(rows[mode]())


@pytest.mark.parametrize("mode", [*POOLING_MODES, "cls+mean", "max+lasttoken+mean"])
def test_pooling_is_that_of_each_text_alone(mode: str, stream: tuple[Tensor, PackedLayout]) -> None:
    hidden, layout = stream
    ends = np.cumsum(LENGTHS)
    texts = [hidden.numpy()[end - length : end] for end, length in zip(ends, LENGTHS, strict=True)]
    expected = [np.concatenate([of_one_text(text, part) for part in mode.split("+")]) for text in texts]
    assert np.abs(pool(hidden, layout, mode).numpy() - np.stack(expected)).max() < 1e-5


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens"])
def test_a_prompts_tokens_are_left_out(mode: str, stream: tuple[Tensor, PackedLayout]) -> None:
    hidden, layout = stream
    starts = np.cumsum([0, *LENGTHS])
    texts = [hidden.numpy()[starts[i] + PROMPTS[i] : starts[i + 1]] for i in range(len(LENGTHS))]
    rows = pool(hidden, layout, mode, layout.prompt_lengths).numpy()
    assert np.abs(rows - np.stack([of_one_text(text, mode) for text in texts])).max() < 1e-5


def test_modules_stand_before_and_after_the_pooling(stream: tuple[Tensor, PackedLayout]) -> None:
    hidden, layout = stream
    modules = (
        EmbeddingModule(kind="Dense", of_tokens=True, in_features=WIDTH, out_features=4, activation="Tanh"),
        EmbeddingModule(kind="LayerNorm", in_features=4, out_features=4),
    )
    config = dataclasses.replace(CONFIG, modules=modules, truncate_dim=3, normalize=True)
    check_modules(config)
    torch.manual_seed(0)
    dense, norm = chain = build_modules(config)
    rows = norm(pool(dense(hidden), layout, "mean"))[:, :3]
    got = embed(hidden, layout, config, chain)
    assert torch.equal(got, torch.nn.functional.normalize(rows, dim=-1))
    assert got.shape == (len(LENGTHS), config.embedding_size)


def test_modules_that_do_not_follow_one_another_are_refused() -> None:
    wide = EmbeddingModule(kind="Dense", in_features=2 * WIDTH, out_features=4)
    check_modules(dataclasses.replace(CONFIG, pooling="cls+mean", modules=(wide,)))
    with pytest.raises(CheckpointError, match=r"Dense takes rows of 12 elements, but gets rows of 6 \(pooling mean\)"):
        check_modules(dataclasses.replace(CONFIG, modules=(wide,)))
