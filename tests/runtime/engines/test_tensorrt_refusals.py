"""When a TensorRT engine refuses to open, and its reason."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_double import A10, T4, FakeCuda, cudaError_t
from tensorrt_double import HERE, LIBRARIES, PROFILES, VERSIONS, batch

from nopad.model.packing import PackedBatch
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.errors import BundleError, EnvironmentProblem
from nopad.runtime.manifest import Artifact

NAME = "modernbert-single-mean"
Graphs = Callable[[str], tuple[Path, Artifact]]

REFUSALS = {
    "another GPU": (
        {"sm": "sm75"},
        EnvironmentProblem,
        "for sm75, this machine has NVIDIA A10 .sm86.: export for sm86",
    ),
    "no GPU named": ({"sm": None}, BundleError, "does not say which GPU"),
    "another version": ({"built_with": "tensorrt 10.13.3.9"}, EnvironmentProblem, "pip install 'tensorrt==10.13..'"),
    "another library": ({"built_with": "tensorrt_rtx 1.7.1.116"}, BundleError, "was built with tensorrt_rtx"),
    "unknown library": ({"built_with": None}, BundleError, "an unknown library"),
    "another system": ({"platform": "Windows-AMD64"}, EnvironmentProblem, f"built on Windows-AMD64, this is {HERE}"),
    "a precision that the GPU lacks": ({"precision": "fp4"}, EnvironmentProblem, "has no fp4 on sm86"),
    "fewer profiles": ({"profiles": PROFILES[:1]}, BundleError, "has 2 profiles, the manifest says 1"),
    "other profiles": (
        {"profiles": PROFILES[::-1]},
        BundleError,
        r"profile 1: input_ids is \[\(64,\), \(128,\), \(512",
    ),
    "other inputs": ({"inputs": {"input_ids": ["tokens"]}}, BundleError, "has input_ids .*pad_index.*INT64"),
    "other outputs": ({"outputs": {"scores": ["sequences", "3"]}}, BundleError, "has logits .*scores of"),
    "unknown sizes": ({"inputs": {"input_ids": ["length"]}}, BundleError, "not a packed stream's"),
    "padded": ({"layout": "padded"}, BundleError, "not the engine of a packed encoder"),
}


def expected(graph: Graphs, packed: PackedBatch, case: str = NAME) -> np.ndarray[Any, Any]:
    path, artifact = graph(case)
    return OnnxCpuEngine(path, artifact, EngineOptions(threads=1)).run(packed)


@pytest.mark.parametrize("fault", REFUSALS)
def test_what_cannot_run_here_is_refused_with_the_reason(fault: str, bench: Any) -> None:
    changes, kind, words = REFUSALS[fault]
    machine = bench()
    with pytest.raises(kind, match=words):
        machine.open(**changes)
    assert not machine.cuda.device and not machine.cuda.pinned and not machine.cuda.streams


def test_a_patch_release_of_tensorrt_is_left_to_the_library_but_not_of_rtx(bench: Any) -> None:
    bench().open(built_with="tensorrt 11.4.1.2").close()
    with pytest.raises(EnvironmentProblem, match="pip install 'tensorrt_rtx==1.7.1.115'"):
        bench("tensorrt-rtx").open(built_with="tensorrt_rtx 1.7.1.115")


def test_a_version_compatible_engine_opens_only_where_its_native_code_is_allowed(bench: Any, graph: Graphs) -> None:
    machine = bench()
    here = VERSIONS["tensorrt"]
    older, newer = "tensorrt 10.13.0.35", "tensorrt 99.0.0.1"
    with pytest.raises(EnvironmentProblem, match="carries native code.*--allow-host-code"):
        machine.open(version_compatible=True)
    with pytest.raises(EnvironmentProblem, match="not interchangeable"):
        machine.open(allow_host_code=True, built_with=older)  # allowed, but it is not version-compatible
    with pytest.raises(EnvironmentProblem, match=f"built with tensorrt 99.0.0.1, this is {here}"):
        machine.open(version_compatible=True, allow_host_code=True, built_with=newer)
    machine.open(allow_host_code=True).close()
    assert not machine.library.host_code_allowed
    engine = machine.open(version_compatible=True, allow_host_code=True, built_with=older)
    assert machine.library.host_code_allowed
    packed = batch(40, 7)
    assert engine.run(packed) == pytest.approx(expected(graph, packed), abs=1e-5)
    engine.close()


def test_a_hardware_compatible_engine_runs_on_newer_gpus(bench: Any) -> None:
    bench().open(sm="sm80+").close()
    with pytest.raises(EnvironmentProblem, match="is for sm80., this machine has Tesla T4 .sm75."):
        bench(cuda=FakeCuda(T4)).open(sm="sm80+")


def test_rtx_on_a_t4_takes_no_fp32(bench: Any) -> None:
    with pytest.raises(EnvironmentProblem, match="no fp32 on sm75.*use --precision fp16"):
        bench("tensorrt-rtx", cuda=FakeCuda(T4)).open(sm="sm75")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _replace(path: Path) -> None:
    path.write_bytes(b"something else entirely")


@pytest.mark.parametrize(
    ("damage", "words"),
    [(_truncate, "blobSize"), (_replace, "blobSize"), (Path.unlink, "cannot read .*No such file")],
)
def test_a_damaged_file_is_named(damage: Callable[[Path], None], words: str, bench: Any) -> None:
    machine = bench()
    damage(machine.path)
    with pytest.raises(BundleError, match=words) as error:
        machine.open()
    assert str(machine.path) in str(error.value)


def test_missing_packages_are_named(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in LIBRARIES.items():
        machine = bench(name)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
        with pytest.raises(EnvironmentProblem, match="needs the package cuda-python"):
            machine.open()
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            EnvironmentProblem,
            match=f"needs the package {module}, which is not installed: pip install 'nopad\\[{name}\\]'",
        ):
            machine.open()


def test_a_library_that_does_not_load_says_why(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = bench()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object')")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path / "broken")
    with pytest.raises(EnvironmentProblem, match="installed but does not load .libnvinfer.so.11"):
        machine.open()


def test_out_of_memory_at_load(bench: Any) -> None:
    machine = bench(cuda=FakeCuda(A10, memory=20_000))
    with pytest.raises(EnvironmentProblem, match="cudaErrorMemoryAllocation .out of memory.*MB are free"):
        machine.open()
    assert not machine.cuda.device and not machine.cuda.pinned and not machine.cuda.streams


def test_out_of_host_memory_at_load(bench: Any) -> None:
    machine = bench()
    machine.cuda.fail["cudaHostAlloc"] = cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(EnvironmentProblem, match="page-locking"):
        machine.open()
    assert not machine.cuda.device and not machine.cuda.pinned and not machine.cuda.streams


@pytest.mark.parametrize(
    ("switch", "message", "kind", "words"),
    [
        ("no_context", True, BundleError, "no execution context for profile 1.*something inside"),
        ("no_profile", "out of memory", EnvironmentProblem, "cannot be selected, the GPU has too little free memory"),
        ("no_profile", "bad profile", BundleError, "cannot be selected: bad profile"),
    ],
)
def test_contexts_that_are_not_made(switch: str, message: Any, kind: Any, words: str, bench: Any) -> None:
    machine = bench()
    setattr(machine.library, switch, message)
    with pytest.raises(kind, match=words):
        machine.open()
    assert not machine.cuda.device and not machine.cuda.streams


@pytest.mark.parametrize("error", ["cudaErrorNoDevice", "cudaErrorInvalidValue"])
def test_no_gpu(error: str, bench: Any) -> None:
    machine = bench()
    machine.cuda.fail["cudaGetDeviceCount"] = cudaError_t[error]
    with pytest.raises(EnvironmentProblem, match=f"no GPU that CUDA can use.*{error}"):
        machine.open()


def test_an_old_driver_is_told_from_none(bench: Any) -> None:
    machine = bench()
    machine.cuda.fail["cudaGetDeviceCount"] = cudaError_t.cudaErrorInsufficientDriver
    with pytest.raises(EnvironmentProblem, match="driver is for CUDA 12.4, cuda-python for 13.4.*cuda-python==12"):
        machine.open()


def test_a_gpu_that_does_not_start(bench: Any) -> None:
    machine = bench()
    machine.cuda.fail["cudaSetDevice"] = cudaError_t.cudaErrorInvalidValue
    with pytest.raises(EnvironmentProblem, match="cannot start with .*opening NVIDIA A10: cudaErrorInvalidValue"):
        machine.open()
