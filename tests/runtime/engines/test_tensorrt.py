"""The TensorRT engines: all but NVIDIA's arithmetic, on doubles; the real libraries as far as they go without a GPU."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import A10, PROFILES, T4, VERSIONS, FakeCuda, FakeLibrary, cudaError_t, write_engine
from reference_models import token_ids
from repository import DATA

from nopad.model.packing import PackedBatch, pack
from nopad.runtime.engines.base import EngineOptions, engine_factory
from nopad.runtime.engines.buckets import bucketed
from nopad.runtime.engines.gpus import gpus
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.engines.tensorrt import TensorRTEngine
from nopad.runtime.errors import BundleError, EngineError, EnvironmentProblem, NopadError, ShapeError
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import load

LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
HERE = f"{platform.system()}-{platform.machine()}"
NAME = "modernbert-single-mean"
CASES = (NAME, "modernbert-multi-cls", "modernbert-token", "modernbert-embed-mean-unit", "bert-single")
Graphs = Callable[[str], tuple[Path, Artifact]]


@dataclasses.dataclass
class Bench:
    """An engine file on a machine of doubles."""

    cuda: FakeCuda
    library: FakeLibrary
    path: Path
    artifact: Artifact
    name: str

    def open(self, allow_host_code: bool = False, **changes: Any) -> TensorRTEngine:
        artifact = dataclasses.replace(self.artifact, **changes)
        options = EngineOptions(pad_token_id=0, allow_host_code=allow_host_code)
        engine = engine_factory(self.name)(self.path, artifact, options)
        assert isinstance(engine, TensorRTEngine)
        return engine


@pytest.fixture
def bench(graph: Graphs, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    def make(name: str = "tensorrt", case: str = NAME, cuda: FakeCuda | None = None) -> Bench:
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
        return Bench(cuda, library, path, artifact, name)

    return make


def batch(*lengths: int, multiple: int = 64) -> PackedBatch:
    return pack([token_ids(length) for length in lengths], multiple=multiple)


def expected(graph: Graphs, one: PackedBatch, case: str = NAME) -> np.ndarray[Any, Any]:
    path, artifact = graph(case)
    return OnnxCpuEngine(path, artifact, EngineOptions(threads=1)).run(one)


@pytest.mark.parametrize(
    "case", [NAME, "modernbert-multi-cls", "modernbert-token", "bert-mlm", "modernbert-embed-mean-unit"]
)
@pytest.mark.parametrize("name", LIBRARIES)
def test_answers_are_those_of_the_same_graph_on_the_cpu(name: str, case: str, bench: Any, graph: Graphs) -> None:
    machine = bench(name, case)
    engine = machine.open()
    try:
        for one in (batch(1), batch(40, 7), batch(128, 3, 64, 65), batch(129), batch(512, 17, 400)):
            answer, want = engine.run(one), expected(graph, one, case)
            assert answer.shape == want.shape and answer.dtype == np.float32
            real = slice(None) if len(answer) == len(one.pad_index) else slice(one.num_tokens)
            # RTX runs the batch filled up, and a CPU cuts the sums of another shape elsewhere.
            bound = 1e-6 * max(1, np.abs(want[real]).max()) if engine.buckets else 0
            assert np.abs(answer[real] - want[real]).max() <= bound
    finally:
        engine.close()


def test_each_batch_runs_in_its_profile_and_beyond_all_of_them_not_at_all(bench: Any) -> None:
    engine = bench().open()
    assert engine.profiles == PROFILES
    engine.run(batch(128, 3))
    engine.run(batch(129, 3))
    for one in (batch(513), batch(8, 8, 8, 8, 8), batch(512, 512, 8)):
        with pytest.raises(ShapeError, match=f"stream of {len(one.input_ids)} tokens"):
            engine.run(one)
    engine.close()


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_parity_gate_asks_the_edges_of_every_profile(
    name: str, bench: Any, plain_bundle: Callable[[str], Path], checkpoint: Callable[[str], Path]
) -> None:
    from nopad.export.parity.gate import run_gate
    from nopad.export.reference.transformers import Reference

    machine = bench(name)
    shapes: set[tuple[int, int, int]] = set()

    def opened(path: Path, artifact: Artifact, options: EngineOptions) -> TensorRTEngine:
        engine = machine.open()
        run = engine.run

        def watched(one: PackedBatch) -> Any:
            shapes.add((len(one.input_ids), *one.pad_index.shape))
            return run(one)

        engine.run = watched
        return engine

    with load(plain_bundle(NAME), engine=opened, fallback=False) as model:
        report = run_gate(model, Reference(checkpoint(NAME), "text-classification"))
    assert report.passed, [row for row in report.rows if not row.passed]
    for profile in PROFILES:
        for size, sizes in enumerate((profile.tokens, profile.sequences, profile.longest)):
            assert sizes[2] in {shape[size] for shape in shapes if profile.admits(*shape)}, (profile, size)
    asked = {row.case.split(":")[0] for row in report.rows if row.check == "profile edges"}
    assert asked >= {"profile 1, largest", "profile 2, largest"}


def test_memory_is_taken_at_load_reused_by_every_run_and_given_back(bench: Any) -> None:
    machine = bench()
    engine = machine.open()
    streams, allocated, used = len(machine.cuda.streams), machine.cuda.allocations, machine.cuda.used
    assert streams == len(PROFILES)
    answers = [engine.run(one).copy() for one in (batch(9), batch(300), batch(9), batch(128, 1, 2, 3))]
    again = [engine.run(one) for one in (batch(9), batch(300), batch(9), batch(128, 1, 2, 3))]
    for first, second in zip(answers, again, strict=True):  # an answer is no view of a buffer that the next run fills
        np.testing.assert_array_equal(first, second)
    assert (machine.cuda.allocations, machine.cuda.used) == (allocated, used)
    engine.close()
    engine.close()
    assert not machine.cuda.device and not machine.cuda.pinned and not machine.cuda.streams
    with pytest.raises(EngineError, match="closed"):
        engine.run(batch(9))


def test_buffers_have_the_profiles_largest_sizes(bench: Any) -> None:
    machine = bench()
    engine = machine.open()
    want = sum(8 * (3 * p.tokens[2] + p.sequences[2] * p.longest[2]) + 4 * 3 * p.sequences[2] for p in PROFILES)
    assert machine.cuda.used == want
    engine.close()


def test_threads_take_turns_in_a_profile(bench: Any, graph: Graphs) -> None:
    machine = bench()
    engine = machine.open()
    batches = [batch(length, 5) for length in (3, 60, 100, 128, 200, 400)]
    want = [expected(graph, one) for one in batches]
    wrong: list[Any] = []

    def work(start: int) -> None:
        for i in range(12):
            place = (start + i) % len(batches)
            answer = engine.run(batches[place])
            if not np.array_equal(answer, want[place]):
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert not wrong and len(machine.library.runs) == 48


def test_the_gpu_that_fits_is_taken_in_every_thread(bench: Any, graph: Graphs) -> None:
    machine = bench(cuda=FakeCuda(T4, A10))  # sm86 is the second
    engine = machine.open()
    assert {gpu for gpu, _ in machine.cuda.streams.values()} == {1}
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(engine.run(batch(9))))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(answers[0], expected(graph, batch(9)))
    engine.close()


def test_rtx_runs_few_shapes_records_graphs_and_keeps_what_it_compiled(bench: Any, home: Path) -> None:
    machine = bench("tensorrt-rtx")
    engine = machine.open()
    assert machine.library.strategies == ["ON_PROFILE_CHANGE", "WHOLE_GRAPH_CAPTURE"]
    for length in range(1, 60, 4):
        engine.run(batch(length, 30, 30))
    shapes = {tuple(run.items()) for run in machine.library.runs}
    assert len(shapes) == 1
    assert dict(shapes.pop())["pad_index"] == (4, 64)
    engine.close()
    (file,) = home.rglob("runtime.cache")
    assert file.read_bytes() == b"compiled"
    assert set(os.listdir(machine.path.parent)) == {"model.engine", "home"}  # nothing beside the engine
    file.write_bytes(b"compiled before")
    again = machine.open()
    assert machine.library.cache.serialize() == b"compiled before"
    again.close()


def test_a_home_that_cannot_be_written_only_costs_the_cache(bench: Any, home: Path) -> None:
    home.write_text("no folder")
    engine = bench("tensorrt-rtx").open()
    assert engine.run(batch(9)).shape == (1, 3)
    engine.close()


def test_filling_up_stays_within_the_profile() -> None:
    for lengths in ((1,), (64, 64, 3), (128, 128, 128, 128), (100, 7)):
        one = batch(*lengths)
        filled = bucketed(one, PROFILES[0], token_multiple=64, filler_id=5)
        assert PROFILES[0].fits(filled)
        assert (filled.input_ids[len(one.input_ids) :] == 5).all()
        assert (filled.sequence_ids[one.num_tokens :] == -1).all()
        sequences, longest = one.pad_index.shape
        np.testing.assert_array_equal(filled.pad_index[:sequences, :longest], one.pad_index)
        assert (filled.pad_index[:sequences, longest:] == -1).all() and (filled.pad_index[sequences:, 0] == 0).all()


@pytest.mark.parametrize("case", ["modernbert-embed-mean-unit", "modernbert-token"])
def test_what_is_filled_up_computes_finite_values(case: str, graph: Graphs) -> None:
    filled = bucketed(batch(100, 7, 5), PROFILES[0], token_multiple=64, filler_id=0)
    assert filled.pad_index.shape == (4, 128) and len(filled.input_ids) == 256
    assert np.isfinite(expected(graph, filled, case)).all()


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
    "padded": ({"layout": "padded"}, BundleError, "no packed encoder's engine"),
}


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
    one = batch(40, 7)
    assert engine.run(one) == pytest.approx(expected(graph, one), abs=1e-5)
    engine.close()


def test_a_hardware_compatible_engine_runs_on_newer_gpus(bench: Any) -> None:
    bench().open(sm="sm80+").close()
    with pytest.raises(EnvironmentProblem, match="is for sm80., this machine has Tesla T4 .sm75."):
        bench(cuda=FakeCuda(T4)).open(sm="sm80+")


def test_rtx_on_a_t4_takes_no_fp32(bench: Any) -> None:
    with pytest.raises(EnvironmentProblem, match="no fp32 on sm75.*take --precision fp16"):
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


def test_what_fails_in_a_run_costs_that_run_alone(bench: Any, graph: Graphs) -> None:
    machine = bench()
    engine = machine.open()
    want = expected(graph, batch(9))
    machine.library.no_run = "Requested size was 1 GB: out of memory"
    with pytest.raises(EngineError, match="did not run: cudaErrorMemoryAllocation: Requested size"):
        engine.run(batch(9))
    machine.library.no_run = "a kernel"
    with pytest.raises(EngineError, match="did not run: a kernel"):
        engine.run(batch(9))
    machine.library.no_run = None
    machine.library.raises = RuntimeError("from C++")
    with pytest.raises(EngineError, match="RuntimeError in the engine: from C"):
        engine.run(batch(9))
    machine.library.raises = None
    machine.cuda.fail["cudaMemcpyAsync"] = cudaError_t.cudaErrorInvalidValue
    with pytest.raises(EngineError, match="copying inputs to the GPU: cudaErrorInvalidValue"):
        engine.run(batch(9))
    np.testing.assert_array_equal(engine.run(batch(9)), want)
    engine.close()
    assert not machine.cuda.device and not machine.cuda.pinned and not machine.cuda.streams


def test_a_lost_context_is_told(bench: Any) -> None:
    machine = bench()
    engine = machine.open()
    machine.cuda.fail["cudaStreamSynchronize"] = cudaError_t.cudaErrorIllegalAddress
    for _ in range(2):
        with pytest.raises(EngineError, match="cudaErrorIllegalAddress .*restart it"):
            engine.run(batch(9))
    engine.close()
    assert not machine.cuda.device and not machine.cuda.pinned and not machine.cuda.streams


def test_gpus_are_listed_without_raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda(T4, A10))
    assert [(gpu.name, gpu.sm, gpu.memory) for gpu in gpus()] == [
        ("Tesla T4", "sm75", 1 << 30),
        ("NVIDIA A10", "sm86", 1 << 30),
    ]
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ()
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA L4, 8.9, 23034'\n")
    script.chmod(0o755)
    assert [(gpu.name, gpu.sm, gpu.memory) for gpu in gpus()] == [("NVIDIA L4", "sm89", 23034 << 20)]
    for text in ("echo 'GPU requires reset, [N/A], [N/A]'", "exit 9"):
        script.write_text(f"#!/bin/sh\n{text}\n")
        assert gpus() == ()


# The doubles against the real ones, and the real ones themselves.


@pytest.fixture
def api() -> Callable[[str], dict[str, list[str]]]:
    """Every name of a library's Python API, read from its wheel."""
    folder = DATA.parent / "tensorrt-api"

    def get(name: str) -> dict[str, list[str]]:
        path = folder / f"{name}-{VERSIONS[name]}.json"
        if not path.is_file():
            pytest.skip(f"no {path}; set NOPAD_DATA to the folder beside the one with the API lists")
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


def test_the_doubles_offer_only_names_that_cuda_python_has() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    double = FakeCuda(A10)
    calls = {name for name in (*vars(FakeCuda), *vars(double)) if name.startswith("cuda")}
    assert {"cudaMalloc", "cudaMemcpyAsync", "cudaError_t"} < calls
    assert not [name for name in calls if not hasattr(real, name)]
    assert {error.name: error.value for error in cudaError_t} == {
        error.name: getattr(real.cudaError_t, error.name).value for error in cudaError_t
    }


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
    for one in PROFILES:
        profile = builder.create_optimization_profile()
        for name, sizes in artifact.inputs.items():
            profile.set_shape(name, *(tuple(getattr(one, size)[place] for size in sizes) for place in range(3)))
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
