"""Engines: what is built without a GPU, what is refused and when, and what a failed build leaves behind."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
from engine_builds import LAYERS, WIDE, Graphs, build, write

import nopad.export.graph.onnx
from nopad.export.engines.tensorrt import BuildOptions, engine_name
from nopad.export.errors import ExportError
from nopad.export.graph.onnx import Graph
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.profiles import ShapeProfile

trt = pytest.importorskip("tensorrt_rtx", reason="needs: pip install 'nopad[tensorrt-rtx]'")

SMALL = ShapeProfile(tokens=(64, 64, 256), sequences=(1, 1, 4), longest=(1, 64, 256))


class NeverBuilder:
    """In the place of `Builder`; must not be called."""

    def __init__(self, *_: Any) -> None:
        raise AssertionError("a builder was created")


@pytest.mark.parametrize(
    ("sm", "precision"),
    [("sm75", "fp16"), ("sm86", "fp16"), ("sm89", "fp16"), ("sm120", "fp16"), ("sm86", "bf16"), ("sm89", "fp32")],
)
def test_engines_are_built_here_for_every_gpu(sm: str, precision: str, graphs: Graphs, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []

    def progress(message: str, done: int = 0, total: int | None = None) -> None:
        told.append((message, done, total))

    output = tmp_path / engine_name("tensorrt-rtx", sm, precision, [WIDE])
    built = build(graphs(precision), output, sm, precision, progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == [built.file]
    assert built.file == f"model.tensorrt-rtx.{sm}.{precision}.p1.engine"
    assert built.bytes == output.stat().st_size > 1_000_000
    assert (built.sm, built.precision, built.library) == (sm, precision, f"tensorrt_rtx {trt.__version__}")
    assert built.seconds > 0
    # Each layer's Wqkv, Wo, Wi, Wo and two of attention, then the head's two.
    assert built.layers["MATRIX_MULTIPLY"] == 6 * LAYERS + 2
    assert built.layers["SOFTMAX"] == LAYERS and "PLUGIN_V3" not in built.layers
    assert {message for message, _, _ in told} == {f"building {output.name}"}
    shares = [done / (total or 0) for _, done, total in told]
    assert shares == sorted(shares) and shares[0] == 0 and 0.5 < shares[-1] <= 1


def test_attention_is_one_kernel_in_local_and_global_layers_with_softmax_in_fp32(graphs: Graphs) -> None:
    messages: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    graph = graphs("fp16")
    assert parser.parse_from_file(str(graph.file))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for name, sizes in graph.inputs.items():
        profile.set_shape(name, *(tuple(getattr(WIDE, size)[i] for size in sizes) for i in range(3)))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    kernels = re.findall(r"^Name: (\S+), LayerType: (?!shape_call)\w+", "\n".join(messages), re.MULTILINE)
    assert sum("mha" in name for name in kernels) == LAYERS, kernels
    assert not [name for name in kernels if "attn/MatMul" in name]  # no scores matrix in memory


@pytest.mark.parametrize(
    ("sm", "precision", "changes", "message"),
    [
        ("sm75", "fp32", {}, "no fp32 on sm75.*no fp32 matrix product.*--precision fp16"),
        ("sm75", "bf16", {}, "no bf16 on sm75.*Turing has no bf16"),
        ("sm90", "fp16", {}, "does not support sm90.*builds for sm75"),
        ("sm99", "fp16", {}, "sm99 is unknown"),
        ("sm86", "fp8", {}, "no fp8 on sm86"),
        ("sm86", "fp16", {"target": "cuda"}, "unknown target 'cuda'"),
        ("sm86", "fp16", {"options": BuildOptions(version_compatible=True)}, "--version-compatible is TensorRT's"),
        ("sm86", "fp16", {"options": BuildOptions(hardware_compatible=True)}, "--hardware-compatible is TensorRT's"),
        (
            "sm75",
            "fp16",
            {"target": "tensorrt", "options": BuildOptions(hardware_compatible=True)},
            "for Ampere and newer, and this GPU is sm75",
        ),
        ("sm86", "fp16", {"profiles": []}, "at least one profile"),
        (
            "sm86",
            "fp16",
            {"profiles": [WIDE, ShapeProfile(tokens=(64, 100, 128), sequences=(1, 1, 1), longest=(1, 1, 1))]},
            "profile 2: tokens 64, 100, 128 must be multiples of 64",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_build(
    sm: str,
    precision: str,
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trt, "Builder", NeverBuilder)
    graph = Graph(file=tmp_path / "none.onnx", opset=20, inputs={}, outputs={}, token_multiple=64)
    with pytest.raises(ExportError, match=message):
        build(graph, tmp_path / "engine", sm, precision, **changes)
    assert not list(tmp_path.iterdir())


def test_a_profile_whose_smallest_is_over_its_best_does_not_exist() -> None:
    with pytest.raises(ValueError, match="tokens: min 128, opt 64"):
        ShapeProfile(tokens=(128, 64, 256), sequences=(1, 1, 1), longest=(1, 1, 1))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError("no more"), "signal"])
def test_a_cancelled_build_leaves_nothing(stop: Any, graphs: Graphs, tmp_path: Path) -> None:
    calls = 0

    def progress(message: str, done: int = 0, total: int | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls != 20:
            return
        if stop == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            raise stop

    kept = tmp_path / "engine"
    kept.write_bytes(b"of before")
    with pytest.raises(type(stop) if isinstance(stop, ValueError) else KeyboardInterrupt):
        build(graphs("fp16"), kept, "sm86", "fp16", progress=progress)
    assert calls in (20, 21)  # a signal is seen when the next line of Python runs
    assert [path.name for path in tmp_path.iterdir()] == ["engine"] and kept.read_bytes() == b"of before"


def damaged(kind: str, graph: Graph, folder: Path) -> Path:
    path = folder / "model.onnx"
    data = graph.file.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "no graph":
        path.write_bytes(b"engine" * 1000)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "without its weights":
        onnx.save_model(
            onnx.load(str(graph.file)), str(path), save_as_external_data=True, location="gone", size_threshold=1024
        )
        (folder / "gone").unlink()
    return path


@pytest.mark.parametrize("kind", ["truncated", "no graph", "empty", "a folder", "missing", "without its weights"])
def test_a_damaged_graph_is_named(kind: str, graphs: Graphs, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = damaged(kind, graphs("fp16"), tmp_path)
    graph = Graph(**{**vars(graphs("fp16")), "file": path})
    with pytest.raises(ExportError, match=re.escape(str(path)) + ".*export the checkpoint again"):
        build(graph, tmp_path / "engine", "sm86", "fp16")
    assert not (tmp_path / "engine").exists()
    assert capfd.readouterr() == ("", "")  # what the library says stands in the error


def test_weights_in_a_file_beside_are_found(graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nopad.export.graph.onnx, "INLINE_BYTES", 0)
    graph = write("modernbert-single-mean", "fp16", tmp_path / "model.onnx", num_hidden_layers=1)
    assert (tmp_path / "model.onnx.data").is_file()
    assert build(graph, tmp_path / "engine", "sm75", "fp16").bytes > 100_000


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_an_environment_problem(graphs: Graphs, tmp_path: Path) -> None:
    with no_file_over(100_000), pytest.raises(EnvironmentProblem, match=os.strerror(errno.EFBIG)) as caught:
        build(graphs("fp16"), tmp_path / "engine", "sm86", "fp16")
    assert "free space" in str(caught.value) and str(tmp_path / "engine") in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_too_little_workspace_is_named_with_the_next_step(graphs: Graphs, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="memory ran out.*workspace limit.*--workspace"):
        build(graphs("fp16"), tmp_path / "engine", "sm86", "fp16", options=BuildOptions(workspace_bytes=1 << 20))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r"needs the package tensorrt, which is not installed: pip install 'nopad\[tensorrt\]'"),
        ("raise OSError('libnvinfer.so.10: no such file')", "is installed but does not load .libnvinfer.so.10"),
        ("import nvidia_gone", "is installed but does not load .*nvidia_gone"),
        ("__version__ = '10.9.0.34'", "this is TensorRT 10.9.0.34, nopad builds with 10.13 to 11.x"),
        ("__version__ = '12.0.0.1'", "this is TensorRT 12.0.0.1"),
    ],
)
def test_a_library_that_is_missing_or_wrong_is_an_environment_problem(
    module: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: Graphs
) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    if module is None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    else:
        (tmp_path / "tensorrt.py").write_text(module)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentProblem, match=message):
        build(graphs("fp16"), tmp_path / "engine", "sm86", "fp16", target="tensorrt")
    if module is not None:
        sys.modules.pop("tensorrt", None)  # not through monkeypatch, which would put it back


def test_the_engines_file_names_target_gpu_precision_and_profiles() -> None:
    assert engine_name("tensorrt-rtx", "sm75", "fp16", [WIDE, SMALL, WIDE]) == "model.tensorrt-rtx.sm75.fp16.p3.engine"
    assert engine_name("tensorrt", "sm90", "int8", [WIDE]) == "model.tensorrt.sm90.int8.p1.engine"
