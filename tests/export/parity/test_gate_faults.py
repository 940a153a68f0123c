"""The parity gate is proven by faults: each is seeded into an encoder, a bundle or an engine, and must be caught.

The faults of the encoder go into trained weights (the embedded checkpoint) unless they need another head; they take the
way of a real export: encoder -> ONNX -> bundle on disk -> runtime -> gate, as each of the three graphs.
`pytest -rP` on this file prints what caught each, and by how much.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from checkpoints import make_checkpoint
from gate_faults import TARGETS, BrokenEngine, Fault, export_with, failed_checks, gate_against, print_catch
from onnx import numpy_helper

from nopad.export.bundle import write_bundle
from nopad.export.graph.cpu import cpu_attention
from nopad.export.graph.openvino import openvino_attention
from nopad.export.parity.gate import run_gate
from nopad.export.reference.transformers import Reference
from nopad.model.attention import Attend, AttentionFactory, PackedLayout, graph_attention
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.encoder import PackedEncoder
from nopad.model.packing import PackedBatch
from nopad.model.rope_config import Rope
from nopad.runtime.bundle import DEFAULT_CHECKPOINT, Bundle, open_bundle, record_files, write_manifest
from nopad.runtime.predictor import load
from nopad.runtime.types import FloatArray


def mixed_attention(make: AttentionFactory, local: bool, layout: PackedLayout, wrong: PackedLayout) -> Attend:
    """Attention of `layout`, but in local (or global) layers that of the layout `wrong`."""
    honest, mistaken = make(layout), make(wrong)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **rest: Any) -> torch.Tensor:
        return (mistaken if rest["local"] == local else honest)(q, k, v, **rest)

    return attend


def texts_attend_to_one_another(make: AttentionFactory, layout: PackedLayout) -> Attend:
    """Local layers that see only the distance, not where one text ends."""
    together = torch.where(layout.sequence_ids >= 0, 0, -1)
    return mixed_attention(make, True, layout, dataclasses.replace(layout, sequence_ids=together))


def one_text_over_the_whole_stream(layout: PackedLayout) -> Attend:
    """Global layers that take the stream for one sequence."""
    everywhere = torch.arange(layout.sequence_ids.shape[0])
    stream = dataclasses.replace(
        layout,
        sequence_ids=torch.zeros_like(everywhere),
        position_ids=everywhere,
        pad_index=everywhere.unsqueeze(0),
    )
    return mixed_attention(graph_attention, False, layout, stream)


def always_alone(layout: PackedLayout) -> Attend:
    """Global layers that choose the kernel for one sequence, however many there are."""
    alone = dataclasses.replace(layout, sequence_ids=torch.zeros_like(layout.sequence_ids))
    return mixed_attention(cpu_attention, False, layout, alone)


def padding_is_attended_to(make: AttentionFactory, layout: PackedLayout) -> Attend:
    """Global layers that take every sequence for as long as the longest."""
    longest = dataclasses.replace(layout, pad_index=layout.pad_index.clamp(min=0))
    return mixed_attention(make, False, layout, longest)


def lose_a_residual(folder: Path) -> None:
    """A product that is not added to its residual stream."""
    model = onnx.load(folder / "model.cpu.onnx")
    node = next(node for node in model.graph.node if node.name == "model.layers.1.mlp.Wo/Gemm")
    assert len(node.input) == 3
    del node.input[2:]
    onnx.save(model, folder / "model.cpu.onnx")


def confuse_slices(folder: Path) -> None:
    """Keys and values of one layer are products of each other's slice of the weight."""
    model = onnx.load(folder / "model.cpu.onnx")
    _, keys, values = (node for node in model.graph.node if node.name.startswith("model.layers.1.attn.Wqkv/Gemm"))
    keys.input[1], values.input[1] = values.input[1], keys.input[1]
    onnx.save(model, folder / "model.cpu.onnx")


def take_a_longer_text_for_short(folder: Path) -> None:
    """Texts one token longer than the window reaches take the path without a window."""
    model = onnx.load(folder / "model.cpu.onnx")
    (longest,) = (node.output[0] for node in model.graph.node if node.op_type == "ReduceMax")
    (bound,) = (
        node.input[1] for node in model.graph.node if node.op_type == "LessOrEqual" and node.input[0] == longest
    )
    value = next(tensor for tensor in model.graph.initializer if tensor.name == bound)
    value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value) + 1, bound))
    onnx.save(model, folder / "model.cpu.onnx")


@torch.no_grad()
def scale_one_head(encoder: PackedEncoder) -> None:
    size = encoder.encoder_config.head_size
    encoder.backbone().layers[1].attn.Wqkv.weight[size : 2 * size] *= 1.02  # queries of head 1


@torch.no_grad()
def forget_the_last_norm(encoder: PackedEncoder) -> None:
    encoder.backbone().final_norm.weight.fill_(1.0)


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
INVARIANCE = {"logits", "batch invariance"}
CPU: dict[str, Any] = {"targets": ("cpu",), "fast": ("cpu",)}
SLOW_CPU: dict[str, Any] = {"targets": ("cpu",), "fast": ()}
OPENVINO: dict[str, Any] = {"targets": ("openvino",), "fast": ()}
FAULTS = {
    "window dropped": Fault(caught=LOGITS, config=lambda c: {"local_layers": (False,) * c.num_layers}),
    "half window one too wide": Fault(
        fast=(), caught=LOGITS, config=lambda c: {"local_attention": c.local_attention + 2}
    ),
    "half window one too narrow": Fault(
        fast=(), caught=LOGITS, config=lambda c: {"local_attention": c.local_attention - 2}
    ),
    "half window 64 -> 65": Fault(
        fast=("cpu",), caught=LOGITS, checkpoint="modernbert-single-cls", config=lambda c: {"local_attention": 130}
    ),
    "half window 64 -> 63": Fault(
        fast=(), caught=LOGITS, checkpoint="modernbert-single-cls", config=lambda c: {"local_attention": 126}
    ),
    "global rope theta": Fault(caught=LOGITS, config=lambda c: {"global_rope": Rope(rope_theta=10_000.0)}),
    "local rope theta": Fault(fast=(), caught=LOGITS, config=lambda c: {"local_rope": Rope(rope_theta=160_000.0)}),
    "local and global layers swapped": Fault(
        fast=(), caught=LOGITS, config=lambda c: {"local_layers": tuple(not local for local in c.local_layers)}
    ),
    "one head's queries 2 % too large": Fault(fast=("cpu", "onnx"), caught=LOGITS, weights=scale_one_head),
    "texts attend to one another in local layers": Fault(
        caught=INVARIANCE,
        targets=("onnx",),
        attention=functools.partial(texts_attend_to_one_another, graph_attention),
    ),
    "texts attend to one another in global layers": Fault(
        caught=INVARIANCE, targets=("onnx",), fast=(), attention=one_text_over_the_whole_stream
    ),
    "CPU graph: texts attend to one another in local layers": Fault(
        caught=INVARIANCE, **SLOW_CPU, attention=functools.partial(texts_attend_to_one_another, cpu_attention)
    ),
    "CPU graph: several texts are taken for one": Fault(caught=INVARIANCE, **CPU, attention=always_alone),
    "CPU graph: padding is attended to": Fault(
        caught=INVARIANCE, **SLOW_CPU, attention=functools.partial(padding_is_attended_to, cpu_attention)
    ),
    "OpenVINO graph: texts attend to one another in local layers": Fault(
        caught=INVARIANCE, **OPENVINO, attention=functools.partial(texts_attend_to_one_another, openvino_attention)
    ),
    "OpenVINO graph: padding is attended to": Fault(
        caught=INVARIANCE, **OPENVINO, attention=functools.partial(padding_is_attended_to, openvino_attention)
    ),
    "CPU graph: a residual is lost": Fault(caught=LOGITS, **CPU, files=lose_a_residual),
    "CPU graph: a text one token too long is taken for short": Fault(
        caught=LOGITS, **SLOW_CPU, checkpoint="modernbert-single-cls", files=take_a_longer_text_for_short
    ),
    "CPU graph: keys and values change places": Fault(caught=LOGITS, **SLOW_CPU, files=confuse_slices),
    "cls instead of mean pooling": Fault(fast=(), caught=LOGITS, config=lambda c: {"pooling": "cls"}),
    "weights of one layer rounded to bf16": Fault(  # the embedded model's are numbers of bf16
        fast=(), caught=LOGITS, checkpoint="modernbert-single-cls", weights=round_weights
    ),
    "labels swapped": Fault(
        fast=("cpu",), caught={"labels", "label names"}, manifest=lambda m: {"labels": m.labels[::-1]}
    ),
    "softmax instead of sigmoid": Fault(
        caught={"probabilities"},
        checkpoint="modernbert-multi-cls",
        manifest=lambda m: {"problem_type": "single_label_classification"},
    ),
    "tokenizer without special tokens": Fault(fast=(), caught={"token ids"}, files=no_special_tokens),
    "embeddings not normalised": Fault(
        fast=("cpu",),
        caught=LOGITS,
        checkpoint="modernbert-embed-mean-unit",
        config=lambda c: {"normalize": False},
        manifest=lambda m: {"normalize": True},
    ),
    "token-embeddings without the last norm": Fault(
        fast=(), caught=LOGITS, checkpoint="modernbert-tokens", weights=forget_the_last_norm
    ),
    "BERT positions off by one": Fault(fast=(), caught=LOGITS, checkpoint="bert-single", weights=shift_positions),
    "BERT token types ignored": Fault(fast=(), caught=LOGITS, checkpoint="bert-rerank", weights=forget_token_types),
    "tokenizer without token types": Fault(
        caught={"logits", "token types"}, checkpoint="bert-single", files=no_token_types
    ),
}


@pytest.fixture(scope="session")
def source(checkpoint: Callable[[str], Path]) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """A checkpoint's folder, and the options of load_checkpoint for it."""
    from reference_models import CASES

    def get(name: str) -> tuple[Path, dict[str, Any]]:
        return (DEFAULT_CHECKPOINT, {}) if name == "embedded" else (checkpoint(name), CASES[name].load)

    return get


# Half the checkpoints with each graph; make test-full has all of them with both.
HONEST = {
    "embedded": ("cpu", "onnx"),
    "modernbert-single-cls": ("cpu",),
    "modernbert-multi-cls": ("onnx",),
    "modernbert-embed-mean-unit": ("cpu",),
    "modernbert-tokens": (),
    "bert-single": ("onnx",),
    "bert-rerank": ("cpu",),
}
assert HONEST.keys() == {fault.checkpoint for fault in FAULTS.values()}


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=[pytest.mark.slow] * (target not in fast), id=f"{name}-{target}")
        for name, fast in HONEST.items()
        for target in TARGETS
    ],
)
def test_without_a_fault_the_gate_passes(name: str, target: str, source: Any, tmp_path: Path) -> None:
    folder, options = source(name)
    bundle = export_with(Fault(caught=set()), folder, options, tmp_path / "bundle", target)
    report = gate_against(bundle, folder, threads=1)
    assert report["passed"] and failed_checks(report) == set()


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=[pytest.mark.slow] * (target not in fault.fast), id=f"{name}-{target}")
        for name, fault in FAULTS.items()
        for target in fault.targets
    ],
)
def test_the_gate_catches(name: str, target: str, source: Any, tmp_path: Path) -> None:
    fault = FAULTS[name]
    folder, options = source(fault.checkpoint)
    bundle = export_with(fault, folder, options, tmp_path / "bundle", target)
    report = gate_against(bundle, folder, threads=1)
    print_catch(f"{name} ({target})", report)
    assert not report["passed"]
    assert failed_checks(report) >= fault.caught


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_the_gate_looks_as_far_as_a_wide_window(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    make_checkpoint("modernbert-single-cls", folder, local_attention=1030)
    for wrong, passed in ((1030, True), (1024, False)):
        fault = Fault(caught=set(), config=lambda c, width=wrong: {"local_attention": width})  # type: ignore[misc]
        bundle = export_with(fault, folder, {}, tmp_path / str(wrong), target)
        report = gate_against(bundle, folder, threads=1)
        assert (load_checkpoint(folder).config.half_window, report["passed"]) == (515, passed)


def doubled_scales(file: Path) -> None:
    """The last layer's output product twice as large in an int8 graph: the scales of its weight."""
    model = onnx.load(file)
    (scales,) = (one for one in model.graph.initializer if re.search(r"layer\.2\.output\.dense.*scale$", one.name))
    scales.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scales), scales.name))
    onnx.save(model, file)


@pytest.mark.parametrize("target", ["cpu", pytest.param("openvino", marks=pytest.mark.slow)])
def test_the_gate_catches_broken_embeddings_in_int8_by_their_cosine(target: str, source: Any, tmp_path: Path) -> None:
    folder, options = source("bert-embed-mean-unit")
    graphs: dict[str, Any] = {"cpu": [], target: ["int8"]}
    (artifact,) = write_bundle(load_checkpoint(folder, **options), tmp_path, **graphs).manifest.artifacts
    engine = "openvino" if target == "openvino" else "onnx-cpu"
    for spoil, failed in ((lambda file: None, set()), (doubled_scales, {"cosine"})):
        spoil(tmp_path / artifact.file)
        manifest = open_bundle(tmp_path, verify=False).manifest
        bundle = write_manifest(tmp_path, dataclasses.replace(manifest, files=record_files(tmp_path)))
        report = gate_against(bundle, folder, engine=engine, threads=1)
        assert failed_checks(report) == failed  # the largest difference of 0.5 alone would pass both
        cosines = [row["value"] for row in report["rows"] if row["check"] == "cosine"]
        assert len(cosines) > 30 and (min(cosines) > 0.999) == report["passed"]
    worst = max(row["value"] for row in report["rows"] if row["check"] == "logits")
    missed = sum(not row["passed"] for row in report["rows"])
    print(f"| int8 of embeddings, {target}: one layer's scales doubled | cosine {missed} | {worst:.1e} |")


def nan_when_long(batch: PackedBatch, logits: FloatArray) -> FloatArray:
    return np.where(batch.lengths.max() > 256, np.float32("nan"), logits)


def zeros_when_long(batch: PackedBatch, logits: FloatArray) -> FloatArray:
    return np.where(batch.lengths.max() > 256, np.float32(0), logits)


def zeros_for_one(batch: PackedBatch, logits: FloatArray) -> FloatArray:
    return np.where((np.arange(len(logits)) == 1)[:, None], np.float32(0), logits)


def put_back_by_the_order(batch: PackedBatch, logits: FloatArray) -> FloatArray:
    """Texts are sorted by length, the longest first, and answers put back by that order instead of its inverse."""
    order = np.argsort(-batch.lengths, kind="stable")
    return logits[order][order] if len(order) <= 64 else logits


ENGINE_FAULTS: dict[str, tuple[set[str], Callable[[PackedBatch, FloatArray], FloatArray]]] = {
    "engine answers NaN on long texts": ({"engine"}, nan_when_long),
    "engine answers zeros on long texts": ({"engine"}, zeros_when_long),
    "engine answers zeros for one text of a batch": ({"logits", "no all-zero answer"}, zeros_for_one),
    "engine answers one text with another's": ({"logits", "batch invariance"}, lambda batch, x: np.roll(x, 1, axis=0)),
    "engine sorts a batch and mistakes the order for its inverse": ({"order of a batch"}, put_back_by_the_order),
    "engine is off by 1e-4": ({"logits"}, lambda batch, logits: logits + np.float32(1e-4)),
}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bundle, Reference]]:
    bundle = export_with(Fault(caught=set()), DEFAULT_CHECKPOINT, {}, tmp_path_factory.mktemp("embedded") / "bundle")
    yield bundle, Reference(DEFAULT_CHECKPOINT, bundle.manifest.task)


@pytest.mark.parametrize("name", ENGINE_FAULTS)
def test_the_gate_catches_engines(name: str, embedded: tuple[Bundle, Reference]) -> None:
    bundle, reference = embedded
    caught, spoil = ENGINE_FAULTS[name]
    with load(bundle.path, engine=BrokenEngine(spoil), threads=1, allow_unverified=True) as model:
        report = run_gate(model, reference).to_json()
    print_catch(name, report)
    assert not report["passed"]
    assert failed_checks(report) >= caught


def one_token_late(batch: PackedBatch, logits: FloatArray) -> FloatArray:
    """Each text's vectors, whole and of the same mean, but each given to the token after its own."""
    out = logits.copy()
    for start, end in itertools.pairwise(batch.cu_seqlens):
        out[start:end] = np.roll(logits[start:end], 1, axis=0)
    return out


def test_the_gate_catches_vectors_of_neighbouring_tokens(bundle: Callable[[str], Path], source: Any) -> None:
    folder, _ = source("modernbert-tokens")
    reference = Reference(folder, "token-embeddings")
    engine = BrokenEngine(one_token_late)
    with load(bundle("modernbert-tokens"), engine=engine, threads=1, allow_unverified=True) as model:
        report = run_gate(model, reference).to_json()
    print_catch("engine gives each token the vector of the token before it", report)
    assert not report["passed"] and failed_checks(report) >= LOGITS
