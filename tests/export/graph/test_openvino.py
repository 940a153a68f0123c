"""The graph for OpenVINO: its answers for any stream, and that OpenVINO fuses what its arrangement is made for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_models import (
    CASES,
    EURO_CASES,
    TRANSFORMERS_4,
    Case,
    difference,
    make_reference,
    packed_logits,
    token_ids,
)
from torch import Tensor

from nopad.export.graph.onnx import export_graph
from nopad.model.attention import sdpa_attention
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.head import PER_TOKEN
from nopad.model.packing import pack
from nopad.runtime.bundle import DEFAULT_CHECKPOINT
from nopad.runtime.engines.openvino import openvino_core

ALL = {**CASES, **EURO_CASES}
LENGTHS = (1, 2, 63, 64, 65, 128, 129, 200, 500)
# Windows and token types with the fast tests; the other heads and architectures with the slow ones, but for one whose
# heads share keys.
FAST = ("modernbert-token", "bert-single")
SLOW = (
    "modernbert-single-mean",
    "modernbert-multi-cls",
    "modernbert-mlm",
    "modernbert-embed-mean-unit",
    "bert-token",
    "bert-mlm",
    "bert-rerank",
    "bert-embed-cls",
    "eurobert-single-late",
    "eurobert-embed-mean-unit",
    "ultrabert-mlm",
    "ultrabert-single-mean",
)
Ask = Callable[[Sequence[Sequence[int]], int], list[Tensor]]


def compiled(file: Path, **settings: Any) -> Any:
    own = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, **settings}
    return openvino_core().compile_model(str(file), "CPU", own)


def types_of(ids: Sequence[int]) -> list[int]:
    """Token types as of a pair of texts."""
    return [0] * (len(ids) // 2) + [1] * (len(ids) - len(ids) // 2)


def asker(encoder: PackedEncoder, file: Path) -> Ask:
    """OpenVINO's answer to each sequence of a stream with exactly `filler` tokens behind them."""
    graph = export_graph(encoder, file, target="openvino")
    assert graph.token_multiple == 1 and encoder.attention is None  # the encoder is as it was
    model, config = compiled(file), encoder.encoder_config

    def ask(sequences: Sequence[Sequence[int]], filler: int) -> list[Tensor]:
        types = [types_of(one) for one in sequences] if config.type_vocab_size else None
        batch = pack(sequences, types, multiple=sum(map(len, sequences)) + filler)
        out = model({name: getattr(batch, name) for name in graph.inputs})[0]
        logits = torch.from_numpy(np.array(out))
        per_token = config.task in PER_TOKEN
        return list(logits[: batch.num_tokens].split(batch.lengths.tolist()) if per_token else logits)

    return ask


def alone(encoder: PackedEncoder, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """PyTorch's answers, each sequence alone."""
    types = bool(encoder.encoder_config.type_vocab_size)
    return [packed_logits(encoder, [one], [types_of(one)] if types else None)[0] for one in sequences]


def bound(answers: Sequence[Tensor]) -> float:
    """The gate's bound: 1e-5, times the largest logit where that is over 1."""
    return 1e-5 * max(1.0, max(answer.abs().max().item() for answer in answers))


def both_of(case: Case, folder: Path) -> tuple[Ask, PackedEncoder]:
    made = make_reference(case, folder / "checkpoint")
    return asker(made.encoder(), folder / "model.onnx"), made.encoder(sdpa_attention).eval()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Ask, PackedEncoder]]:
    """The graph of a case, asked by OpenVINO, and its encoder."""
    made: dict[str, tuple[Ask, PackedEncoder]] = {}

    def get(name: str) -> tuple[Ask, PackedEncoder]:
        if name not in made:
            made[name] = both_of(ALL[name], tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.mark.parametrize(
    "name", [*FAST, "eurobert-token", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_answers_are_the_encoders(name: str, both: Callable[[str], tuple[Ask, PackedEncoder]]) -> None:
    if TRANSFORMERS_4 and name in EURO_CASES:
        pytest.skip("transformers 4.57 has neither EuroBERT nor UltraBERT")
    ask, encoder = both(name)
    sequences = [token_ids(length) for length in LENGTHS]
    want = alone(encoder, sequences)
    near = bound(want)
    for filler in (0, 1, 64):
        assert difference(ask(sequences, filler), want) <= near
    assert difference(ask(sequences[::-1], 7)[::-1], want) <= near
    for one, answer in zip(sequences, want, strict=True):
        assert difference(ask([one], 0), [answer]) <= near


@settings(max_examples=25, derandomize=True)
@given(
    name=st.sampled_from(FAST),
    lengths=st.lists(st.one_of(st.integers(1, 12), st.integers(1, 300)), min_size=1, max_size=7),
    filler=st.one_of(st.just(0), st.integers(1, 130)),
)
@example(name="modernbert-token", lengths=[1], filler=0)
@example(name="modernbert-token", lengths=[64, 64], filler=0)
@example(name="modernbert-token", lengths=[1, 1, 1, 300, 1], filler=7)
@example(name="bert-single", lengths=[129], filler=127)
def test_any_stream_is_answered_as_its_texts_alone(
    both: Callable[[str], tuple[Ask, PackedEncoder]], name: str, lengths: list[int], filler: int
) -> None:
    ask, encoder = both(name)
    sequences = [token_ids(length, seed=place) for place, length in enumerate(lengths)]
    want = alone(encoder, sequences)
    assert difference(ask(sequences, filler), want) <= bound(want)


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, 32, 130, 256])
def test_other_windows_and_blocks(window: int, tmp_path: Path) -> None:
    case = CASES["modernbert-token"]
    ask, encoder = both_of(dataclasses.replace(case, config={**case.config, "local_attention": window}), tmp_path)
    block = encoder.encoder_config.block
    assert block == (128 if window > 128 else 64)
    edges = {window // 2, window, block, 2 * block} - {0}
    sequences = [token_ids(edge + step) for edge in sorted(edges) for step in (-1, 0, 1, 2) if edge + step]
    want = alone(encoder, sequences)
    for filler in (0, 5):
        assert difference(ask(sequences, filler), want) <= bound(want)


@pytest.mark.slow
def test_a_prompt_that_is_not_pooled(tmp_path: Path) -> None:
    made = make_reference(CASES["modernbert-embed-mean-unit"], tmp_path / "checkpoint")
    config = dataclasses.replace(made.encoder().encoder_config, include_prompt=False)
    encoder = build_encoder(config)
    encoder.load_state_dict(made.encoder().state_dict())
    graph = export_graph(encoder, tmp_path / "model.onnx", target="openvino")
    batch = pack([token_ids(20), token_ids(70)], prompt_lengths=[4, 0])
    out = compiled(graph.file)({name: getattr(batch, name) for name in graph.inputs})[0]
    names = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids", "prompt_lengths")
    with torch.no_grad():
        want = encoder.eval()(**{name: torch.from_numpy(getattr(batch, name)) for name in names}).numpy()
        whole = encoder(**{name: torch.from_numpy(getattr(batch, name)) for name in names[:-1]}).numpy()
    assert np.abs(out - want).max() <= 1e-5
    assert np.abs(want[0] - whole[0]).max() > 1e-3  # the prompt counts


# --- what OpenVINO makes of it


def kernels(file: Path) -> Counter[str]:
    """The kernels that ran, by their type in OpenVINO; a product with its activation and residual is one."""
    model = compiled(file, PERF_COUNT=True)
    batch = pack([token_ids(60), token_ids(11)], multiple=8)
    request = model.create_infer_request()
    request.infer({port.any_name: getattr(batch, port.any_name) for port in model.inputs})
    return Counter(one.node_type for one in request.profiling_info if one.status == one.Status.EXECUTED)


def test_openvino_fuses_rotations_attentions_and_activations(openvino_bundle: Path) -> None:
    config = load_checkpoint(DEFAULT_CHECKPOINT).config
    found = kernels(openvino_bundle / "model.openvino.onnx")
    assert found["RoPE"] == 2 * config.num_layers  # queries and keys
    assert found["Subgraph"] == config.num_layers  # scores, mask, softmax and values in one
    assert not {"MatMul", "Softmax", "Gelu", "Split"} & set(found)
    # Each gated MLP has its activation in the product and one multiplication; no copy takes a product apart.
    assert found["FullyConnected"] == 7 * config.num_layers + 2  # q, k, v, out, 2 halves, down; the head's two


@pytest.mark.parametrize("kind", ["", ".bf16", ".int8"])
def test_nothing_is_kept_in_vain_and_no_product_is_taken_apart(kind: str, openvino_bundle: Path) -> None:
    graph = onnx.load(openvino_bundle / f"model.openvino{kind}.onnx").graph
    assert "Split" not in {node.op_type for node in graph.node}
    assert {one.name for one in graph.initializer} <= {value for node in graph.node for value in node.input}
