"""The OpenVINO engine: answers, concurrent calls, its cache folder, and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from reference_models import CASES, token_ids

import nopad.runtime.engines.openvino
from nopad.model.cpus import Cpu, cpu_at_hand, usable_cores
from nopad.model.packing import PackedBatch, pack
from nopad.runtime.batching import CPU_TOKENS, LEAST_TOKENS
from nopad.runtime.bundle import open_bundle
from nopad.runtime.engines.base import EngineOptions, engine_factory
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.engines.openvino import STREAM_STEP, OpenVinoEngine, import_openvino
from nopad.runtime.errors import BundleError, EngineError, EnvironmentProblem
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import load
from nopad.runtime.types import FloatArray

Graphs = Callable[[str], tuple[Path, Artifact]]
NAME = "modernbert-single-mean"
LENGTHS = ((1,), (9, 6), (64, 65, 3), (300, 129, 2, 64))
OLD = Cpu("AMD", "AMD EPYC 7302", ("avx2",))


def opened(path: Path, artifact: Artifact, **options: Any) -> OpenVinoEngine:
    engine = engine_factory("openvino")(path, artifact, EngineOptions(threads=1, **options))
    assert isinstance(engine, OpenVinoEngine)
    return engine


def of_bundle(bundle: Path, precision: str, **options: Any) -> OpenVinoEngine:
    """The file of this precision, opened."""
    (artifact,) = (one for one in open_bundle(bundle).manifest.artifacts if one.precision == precision)
    return opened(bundle / artifact.file, artifact, **options)


def embedded_batch(*lengths: int, multiple: int = 1) -> PackedBatch:
    return pack([token_ids(length, 8000, seed=place) for place, length in enumerate(lengths)], multiple=multiple)


def hint(engine: OpenVinoEngine) -> str:
    """The type that OpenVINO computes in."""
    return str(engine._model.get_property("INFERENCE_PRECISION_HINT").to_string())


@pytest.mark.parametrize("name", [NAME, "modernbert-token", pytest.param("bert-rerank", marks=pytest.mark.slow)])
def test_answers_of_a_plain_graph_are_onnx_runtimes(name: str, graph: Graphs) -> None:
    path, artifact = graph(name)
    theirs, ours = OnnxCpuEngine(path, artifact, EngineOptions(threads=1)), opened(path, artifact)
    assert (ours.name, ours.profiles) == ("openvino", ())
    for lengths in LENGTHS:
        batch = pack([token_ids(length) for length in lengths], multiple=artifact.token_multiple)
        answer, want = ours.run(batch), theirs.run(batch)
        assert answer.shape == want.shape and answer.dtype == np.float32
        real = slice(batch.num_tokens if CASES[name].per_token else None)
        assert np.abs(answer[real] - want[real]).max() <= 1e-5 * max(1, np.abs(want[real]).max())


def test_padded_graphs(padded: tuple[Path, Artifact]) -> None:
    batch = pack([token_ids(5), token_ids(2)])
    answer = opened(*padded, pad_token_id=9).run(batch)
    assert answer.shape == (64, 3)
    np.testing.assert_array_equal(answer[:7, 0], batch.input_ids[:7])
    np.testing.assert_array_equal(answer[:7, 1], 1)
    np.testing.assert_array_equal(answer[:7, 2], [0, 1, 2, 3, 4, 0, 1])
    assert not answer[7:].any()


def test_every_precision_of_its_own_graph(openvino_bundle: Path) -> None:
    batch = embedded_batch(5, 200, 64)
    with load(threads=1, engine="onnx-cpu") as model:
        want = model.run_ids([batch.input_ids[a:b].tolist() for a, b in ((0, 5), (5, 205), (205, 269))])
    gaps = {}
    for precision in ("fp32", "bf16", "int8"):
        engine = of_bundle(openvino_bundle, precision)
        assert (hint(engine) == "bf16") == (precision != "fp32" and cpu_at_hand().bf16)
        gaps[precision] = np.abs(engine.run(batch) - np.stack(want)).max()
    # The embedded weights are numbers of bf16, so only a CPU that computes in it answers otherwise.
    assert gaps["fp32"] <= 1e-5 < gaps["int8"] <= 0.1
    assert gaps["bf16"] <= 5e-2 and (gaps["bf16"] > 1e-5) == cpu_at_hand().bf16


@pytest.mark.skipif(not cpu_at_hand().bf16, reason="this CPU has no bf16 instructions")
def test_bf16_weights_are_held_once_and_in_bf16(openvino_bundle: Path) -> None:
    engine = of_bundle(openvino_bundle, "bf16")
    engine.run(embedded_batch(5))
    held: dict[str, int] = {"f32": 0, "bf16": 0}  # elements
    for node in engine._model.get_runtime_model().get_ops():
        kind = {name: str(node.get_rt_info()[name].value) for name in ("layerType", "outputPrecisions")}
        if kind["layerType"] == "Const" and kind["outputPrecisions"] in held:
            held[kind["outputPrecisions"]] += int(np.prod(list(node.get_output_shape(0))))
    assert held["f32"] < held["bf16"] / 50, held  # norms, biases and the head


def test_streams_are_filled_up_to_few_lengths(openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    real = nopad.runtime.engines.openvino.graph_inputs

    def spy(*arguments: Any) -> Any:
        feeds = real(*arguments)
        fed.append(len(feeds["input_ids"]))
        assert {len(feeds[name]) for name in ("position_ids", "sequence_ids")} == {fed[-1]}
        return feeds

    monkeypatch.setattr(nopad.runtime.engines.openvino, "graph_inputs", spy)
    engine = of_bundle(openvino_bundle, "fp32")
    answers = [engine.run(embedded_batch(length)) for length in (1, 8, 9, 15)]
    assert fed == [8, 8, 16, 16] and STREAM_STEP == 8
    filled = engine.run(embedded_batch(15, multiple=64))  # filler that another engine of the chain needs
    assert fed[-1] == 16
    np.testing.assert_array_equal(filled, answers[-1])


def test_threads_that_call_at_once_get_their_own_answers(openvino_bundle: Path) -> None:
    engine = of_bundle(openvino_bundle, "fp32")
    batches = [embedded_batch(*(1 + (7 * place + k) % 90 for k in range(4))) for place in range(8)]
    alone = [engine.run(batch) for batch in batches]

    def several(place: int) -> list[FloatArray]:
        return [engine.run(batches[place]) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for want, answers in zip(alone, pool.map(several, range(8)), strict=True):
            for answer in answers:
                np.testing.assert_array_equal(answer, want)
    assert 1 <= len(engine._idle) <= 8


def test_threads_are_no_more_than_the_cores_and_micro_batches_grow_with_them(padded: tuple[Path, Artifact]) -> None:
    for threads in (1, 2, 64, None):
        engine = OpenVinoEngine(*padded, EngineOptions(threads=threads))
        assert engine.threads is not None and 1 <= engine.threads <= min(threads or 64, usable_cores())
        assert engine.token_budget == min(CPU_TOKENS, max(LEAST_TOKENS, 256 * engine.threads))


def test_a_failing_run_is_an_engine_error_and_the_next_one_answers(openvino_bundle: Path) -> None:
    engine = of_bundle(openvino_bundle, "fp32")
    batch = embedded_batch(5, 6)
    want = engine.run(batch)
    with pytest.raises(EngineError, match="OpenVINO failed on 11 tokens"):
        engine.run(dataclasses.replace(batch, pad_index=batch.pad_index[0]))  # of another rank
    np.testing.assert_array_equal(engine.run(batch), want)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(batch)


def test_ctrl_c_is_an_exception_still_after_engines_have_closed(openvino_bundle: Path) -> None:
    path, files = openvino_bundle, {"fp32", "bf16"}
    code = f"""
import signal
from nopad.runtime.predictor import load
models = [load({str(path)!r}, engine="openvino", precision=name, threads=1, allow_unverified=True) for name in {files}]
for model in models:
    model.logits(["a"])
    model.close()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("caught")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "caught\n"), done.stderr


def test_what_it_compiles_is_kept_where_the_caller_says(openvino_bundle: Path, tmp_path: Path) -> None:
    batch, cache = embedded_batch(30, 4), tmp_path / "cache"
    with load(
        openvino_bundle, precision="fp32", threads=1, cache_folder=cache, allow_unverified=True, engine="openvino"
    ) as model:
        assert model.status().engine == "openvino"
    first = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert first and len(list(cache.iterdir())) == 1
    again = of_bundle(openvino_bundle, "fp32", cache_folder=cache)
    assert again._model.get_property("LOADED_FROM_CACHE")
    assert {path: path.stat().st_mtime_ns for path in first} == first
    fresh = of_bundle(openvino_bundle, "fp32")
    assert not fresh._model.get_property("LOADED_FROM_CACHE")
    np.testing.assert_array_equal(again.run(batch), fresh.run(batch))
    assert not of_bundle(openvino_bundle, "bf16", cache_folder=cache)._model.get_property("LOADED_FROM_CACHE")
    assert len(list(cache.iterdir())) == 2  # another file, another folder
    files = {path.name for path in openvino_bundle.iterdir()}
    assert files == {"manifest.json", *open_bundle(openvino_bundle).manifest.files}  # nothing is written to a bundle


def test_a_cache_folder_that_cannot_be_made_is_done_without(openvino_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert of_bundle(openvino_bundle, "fp32", cache_folder=tmp_path / "file").run(embedded_batch(3)).shape == (1, 2)


# --- what it refuses


def test_without_openvino_the_next_engine_answers(
    plain_bundle: Callable[[str], Path], graph: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EnvironmentProblem, match=r"needs OpenVINO .*: pip install 'nopad\[openvino\]'"):
        opened(*graph(NAME))
    with load(plain_bundle(NAME), engine=["openvino", "onnx-cpu"], allow_unverified=True, threads=1) as model:
        assert model.status().engine == "onnx-cpu"
        assert "needs OpenVINO" in (model.status().engines[0].reason or "")


@pytest.mark.parametrize("version", ["2025.4.1-20426-82bbf0292c5", "2024.6", "0", ""])
def test_an_old_openvino_is_refused(version: str, padded: tuple[Path, Artifact], monkeypatch: Any) -> None:
    monkeypatch.setattr(import_openvino(), "__version__", version)
    with pytest.raises(EnvironmentProblem, match=r"needs OpenVINO 2026.0 or newer, this is .*: pip install"):
        opened(*padded)


def test_an_operator_that_it_does_not_know_is_named(padded: tuple[Path, Artifact], tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("input_ids", "logits")]
    node = helper.make_node("Frobnicate", ["input_ids"], ["logits"], domain="org.example")
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("org.example", 1)]
    made = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]), opset_imports=imports)
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(
        BundleError, match=r"OpenVINO 202\S+ cannot open .*model\.onnx: .*org\.example\.Frobnicate"
    ) as told:
        opened(tmp_path / "model.onnx", padded[1])
    assert "\n" not in str(told.value) and "Exception from" not in str(told.value)


def test_files_that_are_not_what_the_manifest_says(padded: tuple[Path, Artifact], tmp_path: Path) -> None:
    path, artifact = padded
    with pytest.raises(BundleError, match="takes .*'attention_mask'.*the manifest says .'other'"):
        opened(path, dataclasses.replace(artifact, inputs={"other": ["tokens"]}))
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BundleError, match=f"cannot open {damaged}"):
        opened(damaged, artifact)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_without_bf16_instructions_it_computes_in_fp32(
    precision: str, openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nopad.runtime.engines.openvino, "cpu_at_hand", lambda: OLD)
    engine, exact = (of_bundle(openvino_bundle, name) for name in (precision, "fp32"))
    assert hint(engine) == "f32"
    gap = np.abs(engine.run(embedded_batch(90, 7)) - exact.run(embedded_batch(90, 7))).max()
    # Of the weights alone: those of the embedded model are numbers of bf16.
    assert gap == 0 if precision == "bf16" else 0 < gap <= 0.1


def test_a_bf16_file_is_refused_by_a_cpu_without_it(openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nopad.runtime.engines.selection.cpu_at_hand", lambda: OLD)
    options: dict[str, Any] = {"engine": "openvino", "threads": 1, "allow_unverified": True}
    with pytest.raises(EnvironmentProblem, match="no bf16 instructions: AMD EPYC 7302.*its fp32 file is for this CPU"):
        load(openvino_bundle, file="model.openvino.bf16.onnx", **options)
    with load(openvino_bundle, precision="bf16", **options) as model:
        assert model.artifact.file == "model.openvino.onnx"


# --- the network


WATCHED = """
import sys
events = []
sys.addaudithook(lambda name, args: events.append(name) if name.startswith("socket.") else None)
from nopad.runtime import load
assert "openvino" not in sys.modules
with load(sys.argv[1], engine="openvino", allow_unverified=True, threads=1) as model:
    assert "openvino" in sys.modules
    print(model.predict(["a film"])[0].label)
print(events, "openvino_telemetry" in sys.modules)
"""


def test_it_asks_the_network_for_nothing_and_is_imported_when_it_is_opened(
    openvino_bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(openvino_bundle, copy)
    done = subprocess.run([sys.executable, "-c", WATCHED, copy], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    label, seen = done.stdout.splitlines()
    assert label in ("negative", "positive") and seen.startswith("[] ")
