"""A bundle that answers as it was verified passes; other weights, other tokens and a hidden engine do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from changed_bundles import copied, tampered, warmer

from nopad.model.packing import PackedBatch
from nopad.runtime.bundle import open_bundle, write_manifest
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.errors import EngineError
from nopad.runtime.predictor import load
from nopad.runtime.selfcheck import self_check
from nopad.runtime.types import FloatArray


def test_the_embedded_bundle_answers_as_transformers_does() -> None:
    with load(threads=1) as model:
        found = self_check(model)
    assert found.probes == len(model.manifest.probes) >= 5
    assert found.worst is not None and found.worst < 0.5 and "onnx-cpu in fp32" in found.note


@pytest.mark.parametrize("name", ["modernbert-embed-cls", "modernbert-token", "modernbert-mlm", "modernbert-rerank"])
def test_every_task_has_probes_from_its_export(bundle: Callable[[str], Path], name: str) -> None:
    with load(bundle(name), threads=1) as model:
        found = self_check(model)
        assert found.probes == len(model.manifest.probes) >= 4
        lengths = {tokens.used for tokens in model.encode([probe.text for probe in model.manifest.probes])}  # type: ignore[union-attr]
    assert len(lengths) >= 3
    assert sum(len(probe.values) for probe in model.manifest.probes) < 40_000


def test_a_calibration_changes_no_logits(tmp_path: Path) -> None:
    with load(warmer(tmp_path / "warm"), threads=1) as model:
        assert self_check(model).probes >= 5


def test_other_weights_with_the_right_digests_are_found(tmp_path: Path) -> None:
    with load(tampered(tmp_path / "tampered", 1.001), threads=1) as model, pytest.raises(EngineError) as caught:
        self_check(model)
    assert "differs by" in str(caught.value) and "tampered does not answer here as it was verified" in str(caught.value)


def test_a_bundle_without_probes_or_report_is_only_run(tmp_path: Path) -> None:
    with load(copied(tmp_path / "old", probes=()), threads=1) as model:
        found = self_check(model)
    assert (found.probes, found.worst) == (0, None) and "has no probes to compare with" in found.note
    manifest = open_bundle(copied(tmp_path / "ungated")).manifest
    artifacts = tuple(dataclasses.replace(each, parity={}) for each in manifest.artifacts)
    write_manifest(tmp_path / "ungated", dataclasses.replace(manifest, artifacts=artifacts))
    with load(tmp_path / "ungated", threads=1, allow_unverified=True) as model:
        assert "has no parity report to compare with" in self_check(model).note


def test_another_shape_of_answer_and_an_unreadable_probe_are_named(tmp_path: Path) -> None:
    probes = open_bundle().manifest.probes
    wide = dataclasses.replace(probes[0], shape=(1, 2))
    empty = dataclasses.replace(probes[0], text=" ")
    for name, probe, words in (("wide", wide, r"shape \(2,\)"), ("empty", empty, "cannot be read")):
        with (
            load(copied(tmp_path / name, probes=(probe,)), threads=1) as model,
            pytest.raises(EngineError, match=words),
        ):
            self_check(model)


def test_an_answer_by_the_next_engine_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnnxCpuEngine.run

    def failing(self: OnnxCpuEngine, batch: PackedBatch) -> FloatArray:
        if batch.num_tokens > 16:
            raise EngineError("no memory")
        return real(self, batch)

    monkeypatch.setattr(OnnxCpuEngine, "run", failing)
    with load(threads=1) as model, pytest.raises(EngineError, match="no memory"):
        self_check(model)
    monkeypatch.setattr(OnnxCpuEngine, "run", lambda self, batch: real(self, batch) * np.float32(1.01))
    with load(threads=1) as model, pytest.raises(EngineError, match="differs by"):
        self_check(model)
