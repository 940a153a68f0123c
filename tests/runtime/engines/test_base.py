"""The registry: a new engine is a module and an entry; nothing else has to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nopad.model.packages import Need
from nopad.model.packing import PackedBatch
from nopad.runtime.commands.doctor import run_checks
from nopad.runtime.engines.base import ENGINES, GPU_TARGETS, EngineEntry, EngineOptions, engine_factory
from nopad.runtime.engines.fake import FakeEngine
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Artifact
from nopad.runtime.predictor import load
from nopad.runtime.types import FloatArray


def open_ones(path: Path, artifact: Artifact, options: EngineOptions) -> FakeEngine:
    def ones(batch: PackedBatch) -> FloatArray:
        return np.ones((len(batch.lengths), 3), dtype=np.float32)

    return FakeEngine(ones)


def test_every_factory_is_there_and_carries_the_name_of_its_entry() -> None:
    for name in ENGINES:
        assert getattr(engine_factory(name), "name", None) == name
    with pytest.raises(UsageError, match="unknown engine 'warp'; this nopad has: auto, tensorrt, "):
        engine_factory("warp")


def test_gpus_run_all_artifacts_but_those_for_the_cpu() -> None:
    assert {"onnx", "torch", "tensorrt", "tensorrt-rtx"} == GPU_TARGETS


def test_an_entry_is_all_that_a_new_engine_needs(
    bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EngineEntry(
        factory="nopad.runtime.engines.fake:open_ones",
        targets=("cpu",),
        need=Need(modules=("numpy",), extra="cpu"),
        gpu=False,
        cpu=True,
    )
    monkeypatch.setattr("nopad.runtime.engines.fake.open_ones", open_ones, raising=False)
    monkeypatch.setitem(ENGINES, "fake", entry)
    with load(bundle("modernbert-single-mean"), engine="fake", allow_unverified=True) as model:
        assert model.predict(["a film"])[0].engine == "fake"
    with load(bundle("modernbert-single-mean"), threads=1) as model:  # no bundle has passed the gate on it
        assert model.status().engine == "onnx-cpu"
    assert any(check.name.endswith(": fake") and check.ok for check in run_checks())
