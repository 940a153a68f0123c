"""ONNX Runtime's GPU engines: refused without their provider, and its settings (on a double)."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from onnxruntime_double import GpuOnnxRuntime
from reference_models import token_ids
from tensorrt_double import PROFILES

from nopad.model.packing import PackedBatch, pack
from nopad.runtime.bundle import open_bundle
from nopad.runtime.engines.base import Engine, EngineOptions, engine_factory
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.engines.onnx_gpu import misplaced_products, wide_profile
from nopad.runtime.engines.onnx_session import open_session, session_options
from nopad.runtime.errors import BundleError, EngineError, EnvironmentProblem, ShapeError
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
ENGINES = {"onnx-cuda": CUDA, "onnx-tensorrt": TENSORRT}
NAME = "modernbert-single-mean"
Graphs = Callable[[str], tuple[Path, Artifact]]


def batch(*lengths: int) -> PackedBatch:
    return pack([token_ids(length) for length in lengths])


def opened(name: str, path: Path, artifact: Artifact) -> Engine:
    if name == "onnx-tensorrt" and not artifact.profiles:
        artifact = dataclasses.replace(artifact, profiles=PROFILES)
    return engine_factory(name)(path, artifact, EngineOptions(threads=1, pad_token_id=0))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.skipif(len(onnxruntime.get_available_providers()) > 3, reason="onnxruntime-gpu is installed")
def test_the_cpu_build_of_onnx_runtime_is_refused(name: str, graph: Graphs) -> None:
    with pytest.raises(EnvironmentProblem, match=f"{name} needs the {ENGINES[name]}.*CPUExecutionProvider.*onnx-gpu"):
        opened(name, *graph(NAME))


@pytest.mark.parametrize("name", ENGINES)
def test_without_onnx_runtime(name: str, graph: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    path, artifact = graph(NAME)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentProblem, match=f"{name} needs ONNX Runtime: pip install 'nopad.onnx-gpu.'"):
        opened(name, path, artifact)


@pytest.mark.parametrize("name", ENGINES)
def test_answers_and_what_the_provider_is_told(name: str, graph: Graphs, gpu: GpuOnnxRuntime, capsys: Any) -> None:
    path, artifact = graph(NAME)
    engine = opened(name, path, artifact)
    want = OnnxCpuEngine(path, artifact, EngineOptions(threads=1))
    for packed in (batch(1), batch(130, 9, 64)):
        np.testing.assert_array_equal(engine.run(packed), want.run(packed))
    (providers, more), *_ = gpu.sessions
    assert [provider for provider, _ in providers] == [ENGINES[name], CUDA][-len(providers) :]
    assert providers[-1][1]["use_tf32"] == "0" and more == {"enable_fallback": 0}
    assert capsys.readouterr().out == ""  # stdout is for answers
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(batch(1))


@pytest.mark.parametrize("name", ENGINES)
def test_a_provider_that_did_not_start_is_an_error(name: str, graph: Graphs, gpu: GpuOnnxRuntime) -> None:
    gpu.active = ["CPUExecutionProvider"]
    with pytest.raises(EnvironmentProblem, match="did not start and CPUExecutionProvider would answer.*libcudnn.so.9"):
        opened(name, *graph(NAME))


@pytest.mark.parametrize("name", ENGINES)
def test_matrix_products_that_stay_on_the_cpu_are_an_error(name: str, graph: Graphs, gpu: GpuOnnxRuntime) -> None:
    gpu.stray = ("Shape", "Gemm")
    with pytest.raises(EnvironmentProblem, match=f"{ENGINES[name]} left [0-9]+ of the matrix products to others"):
        opened(name, *graph(NAME))


def test_onnx_runtime_says_where_each_node_runs(graph: Graphs) -> None:
    session = open_session(
        onnxruntime,
        graph(NAME)[0],
        session_options(onnxruntime, 1, {"session.record_ep_graph_assignment_info": "1"}),
        [("CPUExecutionProvider", {})],
    )
    info = session.get_provider_graph_assignment_info()
    assert misplaced_products(info, "CPUExecutionProvider") == []
    lost = misplaced_products(info, CUDA)
    assert len(lost) > 8 and all(node.endswith("(CPUExecutionProvider)") for node in lost)
    assert not [node for node in lost if "Shape" in node]


@pytest.mark.parametrize("name", ENGINES)
def test_out_of_memory(name: str, graph: Graphs, gpu: GpuOnnxRuntime) -> None:
    engine = opened(name, *graph(NAME))
    gpu.fails_to_run = "CUDA failure 2: out of memory"
    with pytest.raises(EngineError, match="ONNX Runtime failed on 9 tokens: CUDA failure 2"):
        engine.run(batch(9))
    gpu.fails_to_open = "Failed to allocate memory for requested buffer of size 4096"
    with pytest.raises(EnvironmentProblem, match="the GPU has too little memory.*buffer of size 4096"):
        opened(name, *graph(NAME))
    gpu.fails_to_open = "no such operator"
    with pytest.raises(BundleError, match="no such operator"):
        opened(name, *graph(NAME))


def test_tensorrt_gets_one_wide_profile_the_graphs_types_and_a_cache(
    graph: Graphs, gpu: GpuOnnxRuntime, home: Path
) -> None:
    path, artifact = graph(NAME)
    engine = opened("onnx-tensorrt", path, artifact)
    assert engine.profiles == (ShapeProfile(tokens=(64, 512, 1024), sequences=(1, 2, 4), longest=(1, 256, 512)),)
    settings = gpu.sessions[0][0][0][1]
    for place, shapes in {
        "min": ("64", "1x1"),
        "opt": ("512", "2x256"),
        "max": ("1024", "4x512"),
    }.items():
        profile_shapes = dict(tensor.split(":") for tensor in settings[f"trt_profile_{place}_shapes"].split(","))
        assert profile_shapes.keys() == artifact.inputs.keys()
        assert (profile_shapes["input_ids"], profile_shapes["pad_index"]) == shapes
    assert not [key for key in settings if "fp16" in key or "bf16" in key or "int8" in key]
    assert Path(settings["trt_engine_cache_path"]).is_relative_to(home) and settings["trt_engine_cache_enable"] == "1"
    for packed in (batch(513), batch(1, 1, 1, 1, 1)):
        with pytest.raises(ShapeError, match=f"stream of {len(packed.input_ids)} tokens"):
            engine.run(packed)


def test_another_file_or_profile_never_finds_the_cache(graph: Graphs, gpu: GpuOnnxRuntime, tmp_path: Path) -> None:
    # ONNX Runtime names its cached engine after the graph, not after the weights.
    path, artifact = graph(NAME)
    copy = tmp_path / "model.onnx"
    shutil.copyfile(path, copy)
    opened("onnx-tensorrt", path, artifact)
    opened("onnx-tensorrt", copy, artifact)
    opened("onnx-tensorrt", copy, dataclasses.replace(artifact, profiles=PROFILES[:1]))
    model = onnx.load(copy)
    weight = next(w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and len(w.dims) == 2)
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(model, copy)
    opened("onnx-tensorrt", copy, artifact)
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    opened("onnx-tensorrt", copy, artifact)
    first, same, *others = [providers[0][1]["trt_engine_cache_path"] for providers, _ in gpu.sessions]
    assert first == same and len({first, *others}) == 4


def test_a_graph_without_profiles_takes_those_of_its_bundles_max_length(
    plain_bundle: Callable[[str], Path], gpu: GpuOnnxRuntime
) -> None:
    bundle = open_bundle(plain_bundle(NAME), verify=False)
    (artifact,) = bundle.manifest.artifacts
    engine = engine_factory("onnx-tensorrt")(bundle.file(artifact.file), artifact, EngineOptions(threads=1))
    (profile,) = engine.profiles
    assert profile.longest[2] >= bundle.manifest.max_length == 1024
    assert engine.run(batch(20, 3)).shape == (2, len(bundle.manifest.labels))


def test_the_wide_profile_covers_all() -> None:
    wide = wide_profile(PROFILES)
    for name in ("tokens", "sequences", "longest"):
        for profile in PROFILES:
            assert getattr(wide, name)[0] <= getattr(profile, name)[0]
            assert getattr(wide, name)[2] >= getattr(profile, name)[2]


def test_padded_graphs_are_not_for_the_tensorrt_provider(padded: tuple[Path, Artifact], gpu: GpuOnnxRuntime) -> None:
    with pytest.raises(BundleError, match="takes packed graphs; .* is padded: use onnx-cuda"):
        opened("onnx-tensorrt", *padded)
