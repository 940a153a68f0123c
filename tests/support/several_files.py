"""The embedded bundle with several files, and engines for them whose speed is known. Helpers, no tests."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nopad.model.cpus import Cpu
from nopad.model.packing import PackedBatch
from nopad.runtime.bundle import DEFAULT_BUNDLE, Bundle, open_bundle, record_files, write_manifest
from nopad.runtime.engines.base import ENGINES, EngineFactory, EngineOptions
from nopad.runtime.engines.fake import FakeEngine
from nopad.runtime.manifest import Artifact
from nopad.runtime.types import FloatArray

AMD = Cpu("AMD", "AMD EPYC 9454", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"))
XEON = Cpu("Intel", "Intel(R) Xeon(R)", ("avx2", "avx512f", "avx512_vnni"))
OLD = Cpu("AMD", "AMD EPYC 7302", ("avx2",))


def with_files(folder: Path, *kinds: tuple[str, str]) -> Bundle:
    """A copy of the embedded bundle with a file for each (target, precision), verified on every engine."""
    shutil.copytree(DEFAULT_BUNDLE, folder)
    manifest = open_bundle(folder, verify=False).manifest
    (artifact,) = manifest.artifacts
    graph = (folder / artifact.file).read_bytes()
    (folder / artifact.file).unlink()
    parity = {name: {"passed": True, "rows": []} for name in ENGINES}
    artifacts = []
    for target, precision in kinds:
        file = f"model.{target}.{precision}.onnx"
        (folder / file).write_bytes(graph)
        artifacts.append(dataclasses.replace(artifact, file=file, target=target, precision=precision, parity=parity))
    return write_manifest(folder, dataclasses.replace(manifest, artifacts=tuple(artifacts), files=record_files(folder)))


def on_cpu(monkeypatch: pytest.MonkeyPatch, cpu: Cpu) -> None:
    """Make this machine's CPU another, without a GPU."""
    for module in ("engines.selection", "engines.torch", "tune_file", "commands.doctor"):
        monkeypatch.setattr(f"nopad.runtime.{module}.cpu_at_hand", lambda: cpu)
    monkeypatch.setattr("nopad.runtime.predictor.gpu_at_hand", lambda: None)


def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Let `nopad tune` measure by a clock that only these engines move; returns the clock."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("several_files.time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr("nopad.runtime.tuning.time", SimpleNamespace(perf_counter=lambda: now))
    return lambda: now


class Timed(FakeEngine):
    """A fake engine with a name, threads and an answer of [sequences, 2] that takes a known time."""

    def __init__(self, name: str, threads: int | None, seconds: Callable[[PackedBatch], float]) -> None:
        super().__init__(self._answer)
        self.name, self.threads, self._seconds = name, threads, seconds

    def _answer(self, batch: PackedBatch) -> FloatArray:
        seconds = self._seconds(batch)
        time.sleep(0.0 if math.isnan(seconds) else seconds)
        return np.full((len(batch.lengths), 2), seconds if math.isnan(seconds) else 1.0, dtype=np.float32)


Seconds = Callable[[str, Artifact, EngineOptions, PackedBatch], float]  # of a batch; NaN: it answers NaN; may raise


def stand_in(monkeypatch: pytest.MonkeyPatch, seconds: Seconds) -> None:
    """Replace every engine by a fake that takes `seconds` for a batch."""

    def factory_of(name: str) -> EngineFactory:
        def open_engine(path: Path, artifact: Artifact, options: EngineOptions) -> FakeEngine:
            return Timed(name, options.threads, lambda batch: seconds(name, artifact, options, batch))

        return open_engine

    monkeypatch.setattr("nopad.runtime.engines.selection.engine_factory", factory_of)
    monkeypatch.setattr("nopad.runtime.engines.selection.missing", lambda modules: [])
