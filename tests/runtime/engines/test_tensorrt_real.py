"""The real TensorRT-RTX as far as it works without a GPU, and the doubles compared with the real libraries."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda_double import A10, FakeCuda
from repository import DATA
from tensorrt_double import HERE, PROFILES, VERSIONS, FakeLibrary

from nopad.runtime.engines.base import EngineOptions, engine_factory
from nopad.runtime.engines.gpus import gpus
from nopad.runtime.errors import BundleError, EnvironmentProblem, NopadError
from nopad.runtime.manifest import Artifact

NAME = "modernbert-single-mean"
Graphs = Callable[[str], tuple[Path, Artifact]]


@pytest.fixture
def api() -> Callable[[str], dict[str, list[str]]]:
    """Every name of a library's Python API, read from its wheel."""
    folder = DATA.parent / "tensorrt-api"

    def get(name: str) -> dict[str, list[str]]:
        path = folder / f"{name}-{VERSIONS[name]}.json"
        if not path.is_file():
            pytest.skip(f"no {path}; set NOPAD_DATA to the folder beside that of the API lists")
        names: dict[str, list[str]] = json.loads(path.read_text())
        return names

    return get


@pytest.mark.parametrize("name", VERSIONS)
def test_the_doubles_offer_only_names_that_the_libraries_have(name: str, api: Any) -> None:
    real, double = api(name), FakeLibrary(name, FakeCuda(A10))
    classes = {key: value for key, value in vars(double).items() if isinstance(value, type)}
    assert len(classes) >= 9
    for key, value in classes.items():
        offered = {attribute for attribute in vars(value) if not attribute.startswith("_")}
        assert key in real and offered and offered <= set(real[key]), key


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a driver")
def test_without_a_driver_the_real_cuda_python_says_so(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    machine = bench()
    monkeypatch.delitem(sys.modules, "cuda.bindings.runtime")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", importlib.import_module("cuda.bindings.runtime"))
    with pytest.raises(EnvironmentProblem, match="no NVIDIA driver on this machine"):
        machine.open()
    assert gpus() == ()


@pytest.fixture(scope="module")
def real_engine(graph: Graphs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, Any]:
    """An engine of TensorRT-RTX itself, built here for sm86 (which needs no GPU)."""
    trt = pytest.importorskip("tensorrt_rtx")
    onnx, artifact = graph(NAME)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(onnx))
    config = builder.create_builder_config()
    for bounds in PROFILES:
        profile = builder.create_optimization_profile()
        for name, sizes in artifact.inputs.items():
            profile.set_shape(name, *(tuple(getattr(bounds, size)[place] for size in sizes) for place in range(3)))
        config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    path = tmp_path_factory.mktemp("engine") / "model.engine"
    path.write_bytes(bytes(builder.build_serialized_network(network, config)))
    artifact = dataclasses.replace(
        artifact,
        file=path.name,
        target="tensorrt-rtx",
        sm="sm86",
        profiles=PROFILES,
        built_with=f"tensorrt_rtx {trt.__version__}",
        platform=HERE,
    )
    return path, artifact, trt


def test_the_real_rtx_reads_its_engine_up_to_the_missing_gpu(
    real_engine: tuple[Path, Artifact, Any], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, artifact, _ = real_engine
    factory = engine_factory("tensorrt-rtx")
    if shutil.which("nvidia-smi") is None:
        with pytest.raises(EnvironmentProblem, match="cuda-python|no NVIDIA driver"):
            factory(path, artifact, EngineOptions())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda(A10))  # the library asks the real CUDA itself
    reasons = {}
    for name, data in {
        "whole": path.read_bytes(),
        "truncated": path.read_bytes()[: path.stat().st_size // 2],
        "no engine": b"x" * 1000,
        "empty": b"",
    }.items():
        file = tmp_path / f"{name}.engine"
        file.write_bytes(data)
        with pytest.raises(NopadError) as error:
            factory(file, artifact, EngineOptions())
        assert isinstance(error.value, BundleError) and str(file) in str(error.value)
        reasons[name] = str(error.value)
    assert "CUDA driver" in reasons["whole"]
    assert "header.size == blobSize" in reasons["truncated"]
    assert "magicTag" in reasons["no engine"]
    assert "empty memory buffer" in reasons["empty"]


def test_every_name_that_the_engine_uses_is_in_the_real_rtx(
    real_engine: tuple[Path, Artifact, Any], bench: Any
) -> None:
    _, _, trt = real_engine
    double = FakeLibrary("tensorrt_rtx", FakeCuda(A10))
    for key, value in vars(double).items():
        if isinstance(value, type):
            offered = {attribute for attribute in vars(value) if not attribute.startswith("_")}
            assert not [attribute for attribute in offered if not hasattr(getattr(trt, key), attribute)], key
