"""The parity gate is proven by faults: each is seeded into an encoder, a bundle or an engine, and must be caught.

The faults of the encoder go into trained weights (the embedded checkpoint) unless they need another head; they travel
the way of a real export: encoder -> ONNX -> bundle on disk -> runtime -> gate. `pytest -rP` on this file prints what
caught each, and by how much.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint

from nopad.export.bundle import gate_bundle, write_bundle
from nopad.export.parity import run_gate
from nopad.export.reference import Reference
from nopad.model.attention import Attend, PackedLayout, graph_attention
from nopad.model.checkpoint import load_checkpoint
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.packing import PackedBatch
from nopad.runtime.bundle import DEFAULT_CHECKPOINT, Bundle, record_files, write_manifest
from nopad.runtime.engines.base import CPU_TOKENS, EngineOptions
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
from nopad.runtime.manifest import Artifact, Manifest
from nopad.runtime.predictor import load
from nopad.runtime.types import FloatArray

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is made wrong, and at least which checks must say so."""

    caught: set[str]
    checkpoint: str = "embedded"  # or a name of reference_models.CASES
    config: Callable[[Any], dict[str, Any]] = lambda config: {}
    weights: Callable[[PackedEncoder], None] = lambda encoder: None
    attention: Callable[[PackedLayout], Attend] | None = None
    manifest: Callable[[Manifest], dict[str, Any]] = lambda manifest: {}
    files: Callable[[Path], None] = lambda folder: None
    load: dict[str, Any] = field(default_factory=dict)


def texts_attend_to_one_another(layout: PackedLayout) -> Attend:
    """Local layers that see only the distance, not where one text ends."""
    together = torch.where(layout.sequence_ids >= 0, 0, -1)
    honest = graph_attention(layout)
    mixed = graph_attention(dataclasses.replace(layout, sequence_ids=together))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, local: bool, **rest: Any) -> torch.Tensor:
        return (mixed if local else honest)(q, k, v, local=local, **rest)

    return attend


def one_text_over_the_whole_stream(layout: PackedLayout) -> Attend:
    """Global layers that take the stream for one sequence."""
    everywhere = torch.arange(layout.sequence_ids.shape[0])
    stream = dataclasses.replace(
        layout,
        sequence_ids=torch.zeros_like(everywhere),
        position_ids=everywhere,
        pad_index=everywhere.unsqueeze(0),
    )
    honest, mixed = graph_attention(layout), graph_attention(stream)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, local: bool, **rest: Any) -> torch.Tensor:
        return (honest if local else mixed)(q, k, v, local=local, **rest)

    return attend


@torch.no_grad()
def scale_one_head(encoder: PackedEncoder) -> None:
    size = encoder.encoder_config.head_size
    encoder.backbone().layers[1].attn.Wqkv.weight[size : 2 * size] *= 1.02  # queries of head 1


@torch.no_grad()
def round_weights(encoder: PackedEncoder) -> None:
    for parameter in encoder.backbone().layers[0].parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


@torch.no_grad()
def shift_positions(encoder: PackedEncoder) -> None:
    table = encoder.backbone().embeddings.position_embeddings.weight
    table.copy_(table.roll(1, 0))


@torch.no_grad()
def forget_token_types(encoder: PackedEncoder) -> None:
    table = encoder.backbone().embeddings.token_type_embeddings.weight
    table[1] = table[0]


def no_special_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(raw | {"post_processor": None}), "utf-8")


def no_token_types(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    raw = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(raw | {"model_input_names": ["input_ids", "attention_mask"]}), "utf-8")


LOGITS = {"logits"}
FAULTS = {
    "window dropped": Fault(caught=LOGITS, config=lambda c: {"local_layers": (False,) * c.num_layers}),
    "half window one too wide": Fault(caught=LOGITS, config=lambda c: {"local_attention": c.local_attention + 2}),
    "half window one too narrow": Fault(caught=LOGITS, config=lambda c: {"local_attention": c.local_attention - 2}),
    "half window 64 -> 65": Fault(
        caught=LOGITS, checkpoint="modernbert-single-cls", config=lambda c: {"local_attention": 130}
    ),
    "half window 64 -> 63": Fault(
        caught=LOGITS, checkpoint="modernbert-single-cls", config=lambda c: {"local_attention": 126}
    ),
    "global rope theta": Fault(caught=LOGITS, config=lambda c: {"global_rope_theta": 10_000.0}),
    "local rope theta": Fault(caught=LOGITS, config=lambda c: {"local_rope_theta": 160_000.0}),
    "local and global layers swapped": Fault(
        caught=LOGITS, config=lambda c: {"local_layers": tuple(not local for local in c.local_layers)}
    ),
    "one head's queries 2 % too large": Fault(caught=LOGITS, weights=scale_one_head),
    "texts attend to one another in local layers": Fault(
        caught={"logits", "batch invariance"}, attention=texts_attend_to_one_another
    ),
    "texts attend to one another in global layers": Fault(
        caught={"logits", "batch invariance"}, attention=one_text_over_the_whole_stream
    ),
    "cls instead of mean pooling": Fault(caught=LOGITS, config=lambda c: {"pooling": "cls"}),
    "weights of one layer rounded to bf16": Fault(caught=LOGITS, weights=round_weights),
    "labels swapped": Fault(caught={"labels", "label names"}, manifest=lambda m: {"labels": m.labels[::-1]}),
    "softmax instead of sigmoid": Fault(
        caught={"probabilities"},
        checkpoint="modernbert-multi-cls",
        manifest=lambda m: {"problem_type": "single_label_classification"},
    ),
    "tokenizer without special tokens": Fault(caught={"token ids"}, files=no_special_tokens),
    "embeddings not normalised": Fault(
        caught=LOGITS,
        checkpoint="modernbert-embed-mean-unit",
        config=lambda c: {"normalize": False},
        manifest=lambda m: {"normalize": True},
    ),
    "BERT positions off by one": Fault(caught=LOGITS, checkpoint="bert-single", weights=shift_positions),
    "BERT token types ignored": Fault(caught=LOGITS, checkpoint="bert-rerank", weights=forget_token_types),
    "tokenizer without token types": Fault(
        caught={"logits", "token types"}, checkpoint="bert-single", files=no_token_types
    ),
}


@pytest.fixture(scope="session")
def source(checkpoint: Callable[[str], Path]) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """A checkpoint's folder and what load_checkpoint is told besides."""
    from reference_models import CASES

    def get(name: str) -> tuple[Path, dict[str, Any]]:
        return (DEFAULT_CHECKPOINT, {}) if name == "embedded" else (checkpoint(name), CASES[name].load)

    return get


def export_with(fault: Fault, folder: Path, options: dict[str, Any], output: Path) -> tuple[Bundle, int]:
    """The bundle of the faulty encoder, and the half window that the true one has."""
    true = load_checkpoint(folder, **options)
    wrong = build_encoder(dataclasses.replace(true.config, **fault.config(true.config)), fault.attention)
    wrong.load_state_dict(true.encoder.state_dict())
    fault.weights(wrong)
    output.mkdir()
    manifest = write_bundle(dataclasses.replace(true, encoder=wrong), output, cpu=None, graphs=["fp32"]).manifest
    fault.files(output)
    changes = fault.manifest(manifest)
    bundle = write_manifest(output, dataclasses.replace(manifest, files=record_files(output), **changes))
    return bundle, true.config.half_window


def failed_checks(report: Report) -> set[str]:
    return {row["check"] for row in report["rows"] if not row["passed"]}


def print_catch(name: str, report: Report) -> None:
    failed = [row for row in report["rows"] if not row["passed"]]
    worst = max((row["value"] for row in failed if row["check"] == "logits" and row["value"]), default=float("nan"))
    counts = ", ".join(f"{check} {sum(r['check'] == check for r in failed)}" for check in sorted(failed_checks(report)))
    print(f"| {name} | {counts} | {worst:.1e} |")


@pytest.mark.parametrize("name", ["embedded", *sorted({f.checkpoint for f in FAULTS.values()} - {"embedded"})])
def test_without_a_fault_the_gate_passes(name: str, source: Any, tmp_path: Path) -> None:
    folder, options = source(name)
    bundle, half_window = export_with(Fault(caught=set()), folder, options, tmp_path / "bundle")
    report = gate_bundle(bundle, folder, half_window=half_window, threads=1)
    assert report["passed"] and failed_checks(report) == set()


# Each is near to one that the fast suite keeps; make test-full runs them all.
SLOW = {
    "half window one too narrow",
    "local rope theta",
    "texts attend to one another in global layers",
    "cls instead of mean pooling",
    "weights of one layer rounded to bf16",
    "tokenizer without special tokens",
    "BERT positions off by one",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAULTS])
def test_the_gate_catches(name: str, source: Any, tmp_path: Path) -> None:
    fault = FAULTS[name]
    folder, options = source(fault.checkpoint)
    bundle, half_window = export_with(fault, folder, options, tmp_path / "bundle")
    report = gate_bundle(bundle, folder, half_window=half_window, threads=1)
    print_catch(name, report)
    assert not report["passed"]
    assert failed_checks(report) >= fault.caught


@pytest.mark.slow
def test_the_gate_looks_as_far_as_a_wide_window(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    make_checkpoint("modernbert-single-cls", folder, local_attention=1030)
    for wrong, passed in ((1030, True), (1024, False)):
        fault = Fault(caught=set(), config=lambda c, width=wrong: {"local_attention": width})  # type: ignore[misc]
        bundle, half_window = export_with(fault, folder, {}, tmp_path / str(wrong))
        report = gate_bundle(bundle, folder, half_window=half_window, threads=1)
        assert (half_window, report["passed"]) == (515, passed)


class BrokenEngine:
    """ONNX Runtime, with its answers spoiled."""

    name = "broken"
    profiles = ()
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


def nan_when_long(batch: PackedBatch, logits: FloatArray) -> FloatArray:
    return np.where(batch.lengths.max() > 256, np.float32("nan"), logits)


def zeros_when_long(batch: PackedBatch, logits: FloatArray) -> FloatArray:
    return np.where(batch.lengths.max() > 256, np.float32(0), logits)


def zeros_for_one(batch: PackedBatch, logits: FloatArray) -> FloatArray:
    return np.where((np.arange(len(logits)) == 1)[:, None], np.float32(0), logits)


ENGINE_FAULTS: dict[str, tuple[set[str], Callable[[PackedBatch, FloatArray], FloatArray]]] = {
    "engine answers NaN on long texts": ({"engine"}, nan_when_long),
    "engine answers zeros on long texts": ({"engine"}, zeros_when_long),
    "engine answers zeros for one text of a batch": ({"logits", "no all-zero answer"}, zeros_for_one),
    "engine answers one text with another's": ({"logits", "batch invariance"}, lambda batch, x: np.roll(x, 1, axis=0)),
    "engine is off by 1e-4": ({"logits"}, lambda batch, logits: logits + np.float32(1e-4)),
}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bundle, Reference]]:
    bundle, _ = export_with(Fault(caught=set()), DEFAULT_CHECKPOINT, {}, tmp_path_factory.mktemp("embedded") / "bundle")
    yield bundle, Reference(DEFAULT_CHECKPOINT, bundle.manifest.task)


@pytest.mark.parametrize("name", ENGINE_FAULTS)
def test_the_gate_catches_engines(name: str, embedded: tuple[Bundle, Reference]) -> None:
    bundle, reference = embedded
    caught, spoil = ENGINE_FAULTS[name]
    with load(bundle.path, engine=BrokenEngine(spoil), threads=1, allow_unverified=True) as model:
        report = run_gate(model, reference, half_window=16).to_json()
    print_catch(name, report)
    assert not report["passed"]
    assert failed_checks(report) >= caught
