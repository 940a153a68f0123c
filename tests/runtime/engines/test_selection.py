"""Which engines may answer, in which order; a GPU is detected only where the choice depends on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from several_files import AMD, OLD, XEON, on_cpu, stand_in, with_files

import nopad.runtime.engines.gpus
from nopad.model.packing import PackedBatch
from nopad.runtime.bundle import Bundle, open_bundle
from nopad.runtime.engines.base import ENGINES, EngineOptions
from nopad.runtime.engines.fake import FakeEngine
from nopad.runtime.engines.hardware import CAPABILITIES
from nopad.runtime.engines.selection import engine_order, find_candidates
from nopad.runtime.errors import BundleError, EnvironmentProblem, UnverifiedError, UsageError
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import Model, load
from nopad.runtime.types import FloatArray

NAME = "modernbert-single-mean"


def ones(batch: PackedBatch) -> FloatArray:
    return np.ones((len(batch.lengths), 3), dtype=np.float32)


def test_every_order_is_of_engines_that_exist_and_ends_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nopad.runtime.engines.selection.missing", lambda modules: [])
    for order in (engine_order(sm, AMD) for sm in (*CAPABILITIES, "sm999")):
        assert sorted(order) == sorted(ENGINES) and order[-2:] == ("onnx-cpu", "openvino")
    flash = ("tensorrt", "tensorrt-rtx", "onnx-tensorrt", "torch", "onnx-cuda", "onnx-cpu", "openvino")
    assert engine_order("sm86", AMD) == flash
    assert engine_order("sm75", AMD)[3:5] == ("onnx-cuda", "torch")
    assert engine_order("sm999", AMD) == flash  # newer than the table


def test_on_cpus_the_order_follows_the_maker_and_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nopad.runtime.engines.selection.missing", lambda modules: [])
    assert engine_order(None, AMD) == engine_order(None, OLD) == ("onnx-cpu", "openvino", "torch")
    assert engine_order(None, XEON) == ("openvino", "onnx-cpu", "torch")
    monkeypatch.setattr(
        "nopad.runtime.engines.selection.missing", lambda modules: [n for n in modules if n == "openvino"]
    )
    assert engine_order(None, XEON) == ("onnx-cpu", "torch", "openvino")


def test_the_order_and_the_names_are_the_users(bundle: Callable[[str], Path]) -> None:
    with load(bundle(NAME), engine=["onnx-cpu"], threads=1) as model:
        assert model.status().engine == "onnx-cpu"
    with pytest.raises(UsageError, match="unknown engine 'warp'"):
        load(bundle(NAME), engine=["warp", "onnx-cpu"])
    with pytest.raises(BundleError, match=r"no file for engine tensorrt; it holds cpu fp32: export it"):
        load(bundle(NAME), engine="tensorrt")
    with pytest.raises(BundleError, match=r"no file for engine auto in fp16; it holds cpu fp32"):
        load(bundle(NAME), precision="fp16")


def test_an_engine_that_was_not_gated_is_refused_by_name(plain_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(UnverifiedError, match="unverified on engine onnx-cuda.*nopad parity --engine onnx-cuda"):
        load(plain_bundle(NAME), engine="onnx-cuda")
    with load(plain_bundle(NAME), engine=["onnx-cuda", "onnx-cpu"], threads=1) as model:
        assert model.status().engine == "onnx-cpu"
        assert "unverified on engine onnx-cuda" in (model.status().engines[0].reason or "")


def test_the_engine_options_reach_a_factory(bundle: Callable[[str], Path]) -> None:
    seen: list[tuple[Path, str, EngineOptions]] = []

    def factory(path: Path, artifact: Artifact, options: EngineOptions) -> FakeEngine:
        seen.append((path, artifact.file, options))
        return FakeEngine(ones)

    with load(bundle(NAME), engine=factory, threads=3) as model:
        assert isinstance(model, Model)
    (given,) = seen
    assert given[0] == bundle(NAME) / given[1] and given[2].threads == 3


# --- the GPU at hand


@pytest.fixture
def no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    def gpus() -> Any:
        raise AssertionError("asked for the GPU")

    monkeypatch.setattr(nopad.runtime.engines.gpus, "gpus", gpus)


@pytest.mark.parametrize("engine", ["auto", "onnx-cpu", ["onnx-cpu", "onnx-cpu"], FakeEngine(ones)])
def test_load_asks_for_no_gpu_where_engines_for_cpus_alone_can_answer(
    engine: Any, bundle: Callable[[str], Path], no_question: None
) -> None:
    with load(bundle(NAME), engine=engine, threads=1) as model:
        assert model.status().engine == "onnx-cpu"


def test_load_asks_for_no_gpu_where_the_cpu_is_named_for_a_graph_that_gpus_run_too(
    plain_bundle: Callable[[str], Path], no_question: None
) -> None:
    with load(plain_bundle(NAME), engine="onnx-cpu", threads=1) as model:
        assert model.status().engine == "onnx-cpu"
    with pytest.raises(AssertionError, match="asked for the GPU"):
        load(plain_bundle(NAME), threads=1)


@pytest.mark.parametrize("target", ["cpu", "onnx"])
def test_export_asks_for_no_gpu_where_none_decides_anything(
    target: Any, checkpoint: Callable[[str], Path], tmp_path: Path, no_question: None
) -> None:
    from nopad.export.bundle import ExportOptions, export_checkpoint

    assert export_checkpoint(checkpoint(NAME), tmp_path / "bundle", ExportOptions(target=target, threads=1)).passed


def with_engines(opened: Bundle, *archs: str) -> Bundle:
    """The bundle, as if it also held a TensorRT engine for each GPU."""
    (artifact,) = opened.manifest.artifacts
    engines = [dataclasses.replace(artifact, file=f"{sm}.engine", target="tensorrt", sm=sm) for sm in archs]
    manifest = dataclasses.replace(opened.manifest, artifacts=(artifact, *engines))
    return dataclasses.replace(opened, manifest=manifest)


def test_the_gpu_is_asked_once_and_its_own_engine_comes_first(plain_bundle: Callable[[str], Path]) -> None:
    opened = with_engines(open_bundle(plain_bundle(NAME), verify=False), "sm75", "sm86")
    asked: list[str] = []

    def sm() -> str:
        asked.append("sm")
        return "sm86"

    candidates = find_candidates(opened, "auto", EngineOptions(), sm=sm, allow_unverified=True)
    order = [(candidate.name, candidate.artifact.sm) for candidate in candidates]
    assert order[:2] == [("tensorrt", "sm86"), ("tensorrt", "sm75")]
    assert sorted(order[-2:]) == [("onnx-cpu", None), ("openvino", None)]
    assert asked == ["sm"]
    find_candidates(opened, ["tensorrt", "onnx-cpu"], EngineOptions(), sm=sm, allow_unverified=True)
    assert asked == ["sm"] * 2  # which of the two engines is for it


# --- precisions on a CPU

KINDS = (("cpu", "int8"), ("openvino", "bf16"), ("openvino", "fp32"), ("cpu", "fp32"))


def order_of(opened: Bundle, precision: str | None, engine: Any = "auto") -> list[tuple[str, str]]:
    found = find_candidates(opened, engine, EngineOptions(), sm=lambda: None, precision=precision)
    return [(candidate.name, candidate.artifact.precision) for candidate in found]


def test_a_precision_is_never_lowered_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = with_files(tmp_path / "bundle", *KINDS)
    stand_in(monkeypatch, lambda *_: 0.0)
    on_cpu(monkeypatch, AMD)
    exact = [("onnx-cpu", "fp32"), ("openvino", "fp32")]
    assert order_of(opened, None) == [*exact, ("openvino", "bf16"), ("onnx-cpu", "int8")]
    assert order_of(opened, "auto") == [("onnx-cpu", "int8"), *exact, ("openvino", "bf16")]
    assert order_of(opened, "auto", ["openvino", "onnx-cpu"])[:2] == [("openvino", "fp32"), ("openvino", "bf16")]
    assert order_of(opened, "bf16", ["onnx-cpu", "openvino"]) == [("openvino", "bf16"), *exact]
    with pytest.raises(BundleError, match="no file for engine onnx-cpu in bf16"):
        order_of(opened, "bf16", "onnx-cpu")
    on_cpu(monkeypatch, XEON)
    assert order_of(opened, None)[:2] == [("openvino", "fp32"), ("onnx-cpu", "fp32")]
    with pytest.raises(BundleError, match="no file for engine auto in fp16; it holds cpu fp32, cpu int8"):
        order_of(opened, "fp16")


def test_auto_takes_the_fastest_that_is_verified_and_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = with_files(tmp_path / "bundle", *KINDS[1:])
    on_cpu(monkeypatch, AMD)
    stand_in(monkeypatch, lambda *_: 0.0)
    assert order_of(opened, "auto")[0] == ("openvino", "bf16")
    monkeypatch.setattr(
        "nopad.runtime.engines.selection.missing", lambda modules: [n for n in modules if n == "openvino"]
    )
    assert order_of(opened, "auto")[0] == ("onnx-cpu", "fp32")
    monkeypatch.setattr("nopad.runtime.engines.selection.missing", lambda modules: [])
    failed = [dataclasses.replace(a, parity={}) if a.precision == "bf16" else a for a in opened.manifest.artifacts]
    manifest = dataclasses.replace(opened.manifest, artifacts=tuple(failed))
    assert order_of(dataclasses.replace(opened, manifest=manifest), "auto")[0] == ("onnx-cpu", "fp32")


def test_a_precision_that_is_lowered_for_want_of_an_engine_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = with_files(tmp_path / "bundle", ("openvino", "fp32"), ("cpu", "int8"))
    on_cpu(monkeypatch, AMD)

    def seconds(name: str, artifact: Artifact, options: EngineOptions, batch: PackedBatch) -> float:
        return np.nan if name == "openvino" else 0.0

    stand_in(monkeypatch, seconds)
    with load(opened.path) as model:
        assert model.artifact.precision == "int8"
    assert "engine onnx-cpu (int8) answers: no file in fp32 can be opened here" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16", "auto", None])
def test_a_cpu_without_bf16_takes_fp32_and_says_so(
    precision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = with_files(tmp_path / "bundle", ("openvino", "bf16"), ("cpu", "fp32"))
    stand_in(monkeypatch, lambda *_: 0.0)
    on_cpu(monkeypatch, OLD)
    with load(opened.path, precision=precision) as model:
        assert model.predict(["a film"])[0].precision == "fp32"
        refused = [engine for engine in model.status().engines if engine.state == "refused"]
    if precision == "bf16":
        (engine,) = refused
        assert "no bf16 instructions: AMD EPYC 7302 (avx2); its fp32 file is for this CPU" in (engine.reason or "")
        assert "no bf16 instructions" in capsys.readouterr().err
    else:
        assert not refused and not capsys.readouterr().err


def test_a_bf16_bundle_on_a_cpu_without_bf16_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = with_files(tmp_path / "bundle", ("openvino", "bf16"))
    stand_in(monkeypatch, lambda *_: 0.0)
    on_cpu(monkeypatch, OLD)
    with pytest.raises(
        EnvironmentProblem, match=r"has no bf16 instructions.*export the bundle with --precision fp32 too"
    ):
        load(opened.path)
    on_cpu(monkeypatch, AMD)  # its only precision: it is answered in it
    with load(opened.path) as model:
        assert model.predict(["a film"])[0].precision == "bf16"


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_nan_from_bf16_is_answered_in_fp32_and_said(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = with_files(tmp_path / "bundle", ("openvino", "bf16"), ("cpu", "fp32"))
    on_cpu(monkeypatch, AMD)

    def seconds(name: str, artifact: Artifact, options: EngineOptions, batch: PackedBatch) -> float:
        extreme = batch.lengths.max() > 20  # not in the self-check
        return np.nan if artifact.precision == "bf16" and extreme else 0.0

    stand_in(monkeypatch, seconds)
    with load(opened.path, precision=precision, token_budget=32) as model:
        answers = model.predict(["short", "an extreme text " * 20, "short too"])
        status = model.status()
    assert [(a.engine, a.precision) for a in answers] == [
        ("openvino", "bf16"),
        ("onnx-cpu", "fp32"),
        ("openvino", "bf16"),
    ]
    assert status.degraded and [(e.precision, e.batches, e.failures) for e in status.engines] == [
        ("bf16", 1, 1),
        ("fp32", 1, 0),
    ]
    assert "engine openvino (bf16) failed on a batch, the next engine answers it: " in capsys.readouterr().err
    assert "NaN" in (status.engines[0].reason or "")
