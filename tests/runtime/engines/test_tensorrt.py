"""The TensorRT engines on doubles: everything except NVIDIA's arithmetic."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_double import A10, T4, FakeCuda, cudaError_t
from tensorrt_double import LIBRARIES, PROFILES, batch

from nopad.model.packing import PackedBatch
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.engines.tensorrt import TensorRTEngine
from nopad.runtime.errors import EngineError, ShapeError
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import load

NAME = "modernbert-single-mean"
CASES = (NAME, "modernbert-multi-cls", "modernbert-token", "modernbert-embed-mean-unit", "bert-single")
Graphs = Callable[[str], tuple[Path, Artifact]]


def expected(graph: Graphs, packed: PackedBatch, case: str = NAME) -> np.ndarray[Any, Any]:
    path, artifact = graph(case)
    return OnnxCpuEngine(path, artifact, EngineOptions(threads=1)).run(packed)


@pytest.mark.parametrize(
    "case", [NAME, "modernbert-multi-cls", "modernbert-token", "bert-mlm", "modernbert-embed-mean-unit"]
)
@pytest.mark.parametrize("name", LIBRARIES)
def test_answers_are_those_of_the_same_graph_on_the_cpu(name: str, case: str, bench: Any, graph: Graphs) -> None:
    machine = bench(name, case)
    engine = machine.open()
    try:
        for packed in (batch(1), batch(40, 7), batch(128, 3, 64, 65), batch(129), batch(512, 17, 400)):
            answer, want = engine.run(packed), expected(graph, packed, case)
            assert answer.shape == want.shape and answer.dtype == np.float32
            real = slice(None) if len(answer) == len(packed.pad_index) else slice(packed.num_tokens)
            # RTX runs the padded batch, and a CPU adds in another order in another shape.
            bound = 1e-6 * max(1, np.abs(want[real]).max()) if engine.buckets else 0
            assert np.abs(answer[real] - want[real]).max() <= bound
    finally:
        engine.close()


def test_each_batch_runs_in_its_profile_and_beyond_all_of_them_not_at_all(bench: Any) -> None:
    engine = bench().open()
    assert engine.profiles == PROFILES
    engine.run(batch(128, 3))
    engine.run(batch(129, 3))
    for packed in (batch(513), batch(8, 8, 8, 8, 8), batch(512, 512, 8)):
        with pytest.raises(ShapeError, match=f"stream of {len(packed.input_ids)} tokens"):
            engine.run(packed)
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

        def watched(packed: PackedBatch) -> Any:
            shapes.add((len(packed.input_ids), *packed.pad_index.shape))
            return run(packed)

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
    answers = [engine.run(packed).copy() for packed in (batch(9), batch(300), batch(9), batch(128, 1, 2, 3))]
    again = [engine.run(packed) for packed in (batch(9), batch(300), batch(9), batch(128, 1, 2, 3))]
    for first, second in zip(
        answers, again, strict=True
    ):  # an answer is not a view of a buffer that the next run overwrites
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
    want = [expected(graph, packed) for packed in batches]
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
