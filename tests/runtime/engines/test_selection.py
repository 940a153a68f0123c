"""Which engines may answer, in which order; a GPU is detected only where the choice depends on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nopad.runtime.engines.gpus
from nopad.model.packing import PackedBatch
from nopad.runtime.bundle import Bundle, open_bundle
from nopad.runtime.engines.base import ENGINES, EngineOptions
from nopad.runtime.engines.cpus import Cpu
from nopad.runtime.engines.fake import FakeEngine
from nopad.runtime.engines.hardware import CAPABILITIES
from nopad.runtime.engines.selection import engine_order, find_candidates
from nopad.runtime.errors import BundleError, UnverifiedError, UsageError
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import Model, load
from nopad.runtime.types import FloatArray

NAME = "modernbert-single-mean"


def ones(batch: PackedBatch) -> FloatArray:
    return np.ones((len(batch.lengths), 3), dtype=np.float32)


def test_every_order_is_of_engines_that_exist_and_ends_on_the_cpu() -> None:
    amd = Cpu("AMD", "AMD EPYC", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"))
    intel = Cpu("Intel", "Intel Xeon", ("avx2", "avx512f", "avx512_vnni", "amx_bf16"))
    for sm in [*CAPABILITIES, "sm999"]:
        assert sorted(engine_order(sm)) == sorted(ENGINES) and set(engine_order(sm)[-2:]) == {"onnx-cpu", "openvino"}
    assert engine_order(None, amd) == ("onnx-cpu", "openvino", "torch")
    assert engine_order(None, intel) == ("openvino", "onnx-cpu", "torch")
    flash = ("tensorrt", "tensorrt-rtx", "onnx-tensorrt", "torch", "onnx-cuda")
    assert engine_order("sm86", amd) == (*flash, "onnx-cpu", "openvino")
    assert engine_order("sm86", intel) == (*flash, "openvino", "onnx-cpu")
    assert engine_order("sm75", amd)[:5] == ("tensorrt", "tensorrt-rtx", "onnx-tensorrt", "onnx-cuda", "torch")
    assert engine_order("sm999")[:5] == flash  # newer than the table


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
    assert set(order[-2:]) == {("onnx-cpu", None), ("openvino", None)}  # whichever the table calls faster here
    assert asked == ["sm"]
    find_candidates(opened, ["tensorrt", "onnx-cpu"], EngineOptions(), sm=sm, allow_unverified=True)
    assert asked == ["sm"] * 2  # which of the two engines is for it
