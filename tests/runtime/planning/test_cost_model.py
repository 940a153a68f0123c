"""FLOPs equal the literature's, counted pair by pair; memory is compared with what TensorRT-RTX reserves."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from architectures import ARCHITECTURES
from architectures import MODERNBERT_BASE as BASE
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_models import BERT, MODERNBERT

from nopad.model.checkpoint.read_config import read_config
from nopad.runtime.bundle import DEFAULT_CHECKPOINT, open_bundle
from nopad.runtime.planning.cost_model import cost_model, pairs_in_window

FAST = settings(max_examples=80, derandomize=True)


@given(st.integers(1, 300), st.integers(0, 200))
def test_pairs_in_a_window_are_counted(length: int, half_window: int) -> None:
    counted = sum(abs(i - j) <= half_window for i in range(length) for j in range(length))
    assert pairs_in_window(length, half_window) == counted


def test_texts_of_modernbert_base() -> None:
    model = cost_model(BASE)
    products = 2 * 22 * (4 * 768**2 + 3 * 768 * 1152)
    assert products / 1e6 == pytest.approx(220.6, abs=0.1)
    assert model.text_flops([1]) == products + 22 * 4 * 768
    # Two texts are the work of each, and a long text's global attention grows with its square.
    assert model.text_flops([512, 64]) == model.text_flops([512]) + model.text_flops([64])
    attention = model.text_flops([8192]) - products * 8192
    assert attention == 4 * 768 * (8 * 8192**2 + 14 * pairs_in_window(8192, 64))


@FAST
@given(lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=20), index=st.sampled_from(range(3)))
def test_an_engine_executes_no_less_than_the_texts_need(lengths: list[int], index: int) -> None:
    model = cost_model(ARCHITECTURES[index])
    tokens = -(-sum(lengths) // model.block) * model.block
    assert model.text_flops(lengths) <= model.work(tokens, len(lengths), max(lengths))


def test_the_work_of_modernbert_base() -> None:
    """By hand: a gated layer has 4 h^2 + 3 h i weights; 14 of 22 layers are local and attend to 192 keys."""
    model = cost_model(BASE)
    products = 2 * 22 * (4 * 768 * 768 + 3 * 768 * 1152)
    assert products == pytest.approx(220.6e6, rel=1e-3)
    token = model.work(1, 0, 0)  # all of it but global attention
    assert token == pytest.approx(products + 14 * 4 * 192 * 768)
    assert model.work(64, 1, 10) - 64 * token == pytest.approx(8 * 4 * 100 * 768)
    assert model.work(128, 3, 40) == pytest.approx(128 * token + 8 * 4 * 3 * 1600 * 768)
    assert 100 < model.launch_flops / token < 300  # tokens, as the comment on the constant says
    assert cost_model(read_config({**MODERNBERT}, task="embeddings")).local_layers == 2
    bert = cost_model(read_config(BERT, task="embeddings"))
    assert bert.work(1, 0, 0) == 2 * 3 * (4 * 64 * 64 + 2 * 64 * 128) and bert.global_layers == 3


SIZE = st.integers(1, 20_000)


@FAST
@given(size=st.tuples(SIZE, SIZE, SIZE), more=st.tuples(SIZE, SIZE, SIZE), index=st.sampled_from(range(3)))
def test_larger_profiles_reserve_no_less(size: tuple[int, int, int], more: tuple[int, int, int], index: int) -> None:
    larger = tuple(max(a, b) for a, b in zip(size, more, strict=True))
    assume(larger != size)
    model = cost_model(ARCHITECTURES[index])
    assert model.memory(*larger) >= model.memory(*size)
    assert model.memory(*size) >= dataclasses.replace(model, keeps_scores=False).memory(*size)
    assert cost_model(ARCHITECTURES[index], element_bytes=4).memory(*size) > model.memory(*size)


def reserved(graph: Path, size: tuple[int, int, int]) -> int:
    """Bytes of activations that TensorRT-RTX reports for an engine with this one profile."""
    trt = pytest.importorskip("tensorrt_rtx")
    lines: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            lines.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, log).parse(graph.read_bytes())
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        if name == "pad_index":
            profile.set_shape(name, (1, 1), size[1:], size[1:])
        else:
            profile.set_shape(name, (64,), size[:1], size[:1])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    found = [match for line in lines if (match := re.match(r"Total Activation Memory: (\d+) bytes", line))]
    return int(found[-1][1])


def plain_graph(precision: Any, folder: Path) -> Path:
    """The graph in plain ONNX of the embedded checkpoint, as engines are built from it."""
    from nopad.export.graph.onnx import export_graph
    from nopad.export.graph.precision import cast
    from nopad.model.checkpoint.load import load_checkpoint

    return export_graph(cast(load_checkpoint(DEFAULT_CHECKPOINT).encoder, precision), folder / "model.onnx").file


def test_the_forecast_memory_holds_what_tensorrt_rtx_reserves(tmp_path: Path) -> None:
    architecture, graph = open_bundle().manifest.architecture, plain_graph("fp32", tmp_path)
    for size in ((1024, 1, 1024), (4096, 64, 128), (16384, 16, 1024)):
        forecast = cost_model(architecture, element_bytes=4).memory(*size)
        assert 1 <= forecast / reserved(graph, size) <= 2, size


def test_in_half_precision_tensorrt_rtx_keeps_no_scores(tmp_path: Path) -> None:
    architecture, graph = open_bundle().manifest.architecture, plain_graph("fp16", tmp_path)
    size = (8192, 16, 4096)
    careful, fused = (cost_model(architecture, keeps_scores=keeps).memory(*size) for keeps in (True, False))
    assert 1 <= fused / reserved(graph, size) <= 1.6
    assert careful > 10 * fused
