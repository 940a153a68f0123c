"""Fixtures for tests of engines: graphs of small encoders, and doubles of machines and libraries."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from cuda_double import A10, FakeCuda
from onnx import TensorProto, helper
from onnxruntime_double import GpuOnnxRuntime
from tensorrt_double import HERE, LIBRARIES, PROFILES, VERSIONS, FakeLibrary, Machine, write_engine

from nopad.runtime.bundle import open_bundle
from nopad.runtime.manifest import Artifact

Graphs = Callable[[str], tuple[Path, Artifact]]


@pytest.fixture(scope="session")
def graph(plain_bundle: Callable[[str], Path]) -> Graphs:
    """The fp32 graph in plain ONNX of one of `reference_models.CASES`, and the manifest's record of it."""

    def get(name: str) -> tuple[Path, Artifact]:
        opened = open_bundle(plain_bundle(name))
        (artifact,) = opened.manifest.artifacts
        return opened.file(artifact.file), artifact

    return get


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, home: Path) -> GpuOnnxRuntime:
    """A double of ONNX Runtime with its GPU providers."""
    module = GpuOnnxRuntime("TensorrtExecutionProvider", "CUDAExecutionProvider")
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


@pytest.fixture
def bench(graph: Graphs, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Puts an engine file on a machine of doubles, with an A10 by default."""

    def make(name: str = "tensorrt", case: str = "modernbert-single-mean", cuda: FakeCuda | None = None) -> Machine:
        cuda = cuda or FakeCuda(A10)
        library = FakeLibrary(LIBRARIES[name], cuda)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        monkeypatch.setitem(sys.modules, LIBRARIES[name], library)
        onnx, artifact = graph(case)
        artifact = dataclasses.replace(
            artifact,
            file="model.engine",
            target=name,
            sm="sm86",
            profiles=PROFILES,
            built_with=f"{LIBRARIES[name]} {VERSIONS[LIBRARIES[name]]}",
            platform=HERE,
        )
        path = tmp_path / "model.engine"
        write_engine(path, onnx, artifact)
        return Machine(cuda, library, path, artifact, name)

    return make


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """A padded graph that tells what it was fed: per token [id, mask, position]."""
    names = ("input_ids", "attention_mask", "position_ids")
    sizes = ["batch_size", "sequence_length"]
    nodes = []
    for name in names:
        nodes.append(helper.make_node("Unsqueeze", [name, "axis"], [f"{name}_1"]))
        nodes.append(helper.make_node("Cast", [f"{name}_1"], [f"{name}_2"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Concat", [f"{name}_2" for name in names], ["logits"], axis=-1))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "padded",
            [helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name in names],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*sizes, 3])],
            [helper.make_tensor("axis", TensorProto.INT64, [1], [-1])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = tmp_path_factory.mktemp("padded") / "model.onnx"
    onnx.save(model, path)
    artifact = Artifact(
        file="model.onnx",
        target="onnx",
        precision="fp32",
        layout="padded",
        inputs={name: sizes for name in names},
        outputs={"logits": [*sizes, "3"]},
        exporter="optimum",
    )
    return path, artifact
