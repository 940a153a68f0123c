"""Faults to seed, bundles and engines that have them, and the gate's report. Helpers, no tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nopad.export.bundle import write_bundle
from nopad.export.parity.run import gate_bundle, open_reference
from nopad.export.parity.stress import CHECKS
from nopad.model.attention import AttentionFactory
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.source import open_source
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.packing import PackedBatch
from nopad.runtime.batching import CPU_TOKENS
from nopad.runtime.bundle import Bundle, record_files, write_manifest
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.manifest import Artifact, Manifest
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray

Report = dict[str, Any]
TARGETS = ("cpu", "openvino", "onnx")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A seeded fault, and the checks that must catch it, at least."""

    caught: set[str]
    targets: tuple[str, ...] = TARGETS
    fast: tuple[str, ...] = ("onnx",)  # targets of the fast suite; the others are slow
    checkpoint: str = "embedded"  # or a name of reference_models.CASES
    config: Callable[[Any], dict[str, Any]] = lambda config: {}
    weights: Callable[[PackedEncoder], None] = lambda encoder: None
    attention: AttentionFactory | None = None
    manifest: Callable[[Manifest], dict[str, Any]] = lambda manifest: {}
    files: Callable[[Path], None] = lambda folder: None
    load: dict[str, Any] = field(default_factory=dict)


def export_with(fault: Fault, folder: Path, options: dict[str, Any], output: Path, target: str = "cpu") -> Bundle:
    """The bundle of the faulty encoder with the graph of this target."""
    true = load_checkpoint(folder, **options)
    wrong = build_encoder(dataclasses.replace(true.config, **fault.config(true.config)), fault.attention)
    wrong.load_state_dict(true.encoder.state_dict())
    fault.weights(wrong)
    output.mkdir()
    graph: dict[str, Any] = {"cpu": [], "graphs" if target == "onnx" else target: ["fp32"]}
    manifest = write_bundle(dataclasses.replace(true, encoder=wrong), output, **graph).manifest
    assert [artifact.target for artifact in manifest.artifacts] == [target]
    fault.files(output)
    changes = fault.manifest(manifest)
    return write_manifest(output, dataclasses.replace(manifest, files=record_files(output), **changes))


def gate_against(bundle: Bundle, folder: Path, **options: Any) -> Report:
    """The gate's report on a bundle, judged by transformers with the checkpoint in `folder`."""
    with open_reference(open_source(folder), bundle.manifest) as reference:
        return gate_bundle(bundle, reference, **options)


def failed_checks(report: Report) -> set[str]:
    return {row["check"] for row in report["rows"] if not row["passed"]}


def print_catch(name: str, report: Report) -> None:
    failed = [row for row in report["rows"] if not row["passed"]]
    differences = [row["value"] for row in failed if row["check"] in ("logits", *CHECKS) and row["value"]]
    worst = max(differences, default=float("nan"))
    counts = ", ".join(f"{check} {sum(r['check'] == check for r in failed)}" for check in sorted(failed_checks(report)))
    print(f"| {name} | {counts} | {worst:.1e} |")


class BrokenEngine:
    """ONNX Runtime with wrong answers."""

    name = "broken"
    profiles: tuple[ShapeProfile, ...] = ()
    token_budget = CPU_TOKENS

    def __init__(self, spoil: Callable[[PackedBatch, FloatArray], FloatArray]) -> None:
        self.spoil = spoil

    def __call__(self, path: Path, artifact: Artifact, options: EngineOptions) -> BrokenEngine:
        self.engine = OnnxCpuEngine(path, artifact, options)
        return self

    def run(self, batch: PackedBatch) -> FloatArray:
        return self.spoil(batch, self.engine.run(batch))

    def close(self) -> None:
        self.engine.close()
