"""Faults that show only in large batches, at full length, at profiles' edges, in repeated or in concurrent calls.

Each fault passes the gate's first half (lengths and sentences: `test_gate_faults.py`); the second half must catch it,
in the named check. `pytest -rP` prints what caught each, and by how much.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate_faults import Fault, export_with, failed_checks, gate_against, print_catch
from suspect_engine import EngineFault, Spoil, SuspectEngine, gate, off

from nopad.export.commands.gate_report import print_report
from nopad.export.graph.cpu import cpu_attention
from nopad.export.parity import full_length, known_texts
from nopad.export.parity.stress import CHECKS, fill, unsorted
from nopad.export.reference.transformers import Reference
from nopad.model.attention import Attend, AttentionFactory, PackedLayout, graph_attention
from nopad.model.packing import PackedBatch
from nopad.runtime.bundle import DEFAULT_CHECKPOINT, Bundle
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray

FULL = 1024  # the longest text of all models here
NARROW = ShapeProfile(tokens=(64, 256, 1024), sequences=(1, 8, 100), longest=(1, 64, 128))
WIDE = ShapeProfile(tokens=(64, 1024, 2048), sequences=(1, 4, 24), longest=(1, 512, FULL))


def previous_answer(engine: SuspectEngine, batch: PackedBatch, logits: FloatArray) -> FloatArray:
    """The answers of the call before, where that had the same shape: a buffer is read too early."""
    shape = batch.pad_index.shape
    before, engine.kept[shape] = engine.kept.get(shape, logits), logits
    return before


def one_token_texts_change_places(engine: SuspectEngine, batch: PackedBatch, logits: FloatArray) -> FloatArray:
    short = np.flatnonzero(batch.lengths == 1)
    if len(short) < 64:
        return logits
    logits = logits.copy()
    logits[short] = logits[np.roll(short, 1)]
    return logits


def third_call(engine: SuspectEngine, batch: PackedBatch) -> bool:
    return engine.calls[batch.input_ids.tobytes() + batch.pad_index.tobytes()] >= 3


PROFILES = (NARROW, WIDE)
ENGINE_FAULTS = {
    "batches of 100 texts or more": EngineFault(
        caught="large batch", spoil=off(lambda engine, batch: len(batch.lengths) >= 100)
    ),
    "the 400th text of a batch": EngineFault(
        caught="large batch", spoil=off(lambda engine, batch: np.arange(len(batch.lengths)) == 399)
    ),
    "streams of more than 2,048 tokens": EngineFault(
        caught="large batch", spoil=off(lambda engine, batch: batch.num_tokens > 2048)
    ),
    "64 texts of one token": EngineFault(caught="many short texts", spoil=one_token_texts_change_places),
    "full length": EngineFault(caught="full length", spoil=off(lambda engine, batch: batch.lengths.max() >= FULL)),
    "full length, second half": EngineFault(
        caught="full length",
        checkpoint="modernbert-token",
        spoil=off(lambda engine, batch: (batch.lengths.max() >= FULL) & (batch.position_ids >= FULL // 2)),
    ),
    "full length, last token": EngineFault(
        caught="full length",
        checkpoint="modernbert-token",
        spoil=off(lambda engine, batch: batch.position_ids == FULL - 1),
    ),
    "the third call with a batch": EngineFault(caught="repeated calls", spoil=off(third_call)),
    "the answers of the call before, if of one shape": EngineFault(caught="repeated calls", spoil=previous_answer),
    "two calls at once": EngineFault(caught="concurrent calls", spoil=off(lambda engine, batch: engine.crowded.now)),
    "a profile's most tokens": EngineFault(
        caught="profile edges", profiles=PROFILES, spoil=off(lambda engine, batch: len(batch.input_ids) == 2048)
    ),
    "a profile's most texts": EngineFault(
        caught="profile edges", profiles=PROFILES, spoil=off(lambda engine, batch: len(batch.lengths) == 100)
    ),
    "a profile's longest text": EngineFault(
        caught="profile edges", profiles=PROFILES, spoil=off(lambda engine, batch: batch.pad_index.shape[1] == FULL)
    ),
    "five texts, the first of a bucket": EngineFault(
        caught="profile edges", profiles=PROFILES, spoil=off(lambda engine, batch: batch.pad_index.shape == (5, 64))
    ),
}


@pytest.fixture(scope="module")
def gated(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[Bundle, Reference]]]:
    opened: dict[str, tuple[Bundle, Reference]] = {}

    def get(name: str) -> tuple[Bundle, Reference]:
        if name not in opened:
            folder = DEFAULT_CHECKPOINT if name == "embedded" else checkpoint(name)
            bundle = export_with(Fault(caught=set()), folder, {}, tmp_path_factory.mktemp(name) / "bundle", "onnx")
            opened[name] = bundle, Reference(folder, bundle.manifest.task)
        return opened[name]

    yield get


# The fast suite has similar faults; make test-full has all.
pytestmark = pytest.mark.slow  # minutes; test_gate_faults.py holds the gate to its first half

SLOW = {
    "batches of 100 texts or more",
    "the 400th text of a batch",
    "full length, last token",
    "the third call with a batch",
    "a profile's most texts",
    "a profile's longest text",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ENGINE_FAULTS]
)
def test_the_gate_catches_what_its_first_half_misses(name: str, gated: Any) -> None:
    fault = ENGINE_FAULTS[name]
    report = gate(SuspectEngine(fault.spoil, fault.profiles), gated(fault.checkpoint))
    print_catch(f"engine: {name}", report)
    assert fault.caught in failed_checks(report) <= set(CHECKS)


@pytest.mark.parametrize(
    ("where", "profiles"),
    [("embedded", ()), ("embedded", (NARROW,)), ("modernbert-token", ()), ("modernbert-token", (NARROW, WIDE))],
    ids=["any shape", "a narrow profile", "per token", "per token, two profiles"],
)
def test_a_right_engine_passes(where: str, profiles: tuple[ShapeProfile, ...], gated: Any) -> None:
    engine = SuspectEngine(lambda engine, batch, logits: logits, profiles)
    report = gate(engine, gated(where))
    assert report["passed"], [row for row in report["rows"] if not row["passed"]]
    expected = set(CHECKS) - ({"large batch", "many short texts"} if profiles else {"profile edges"})
    assert {row["check"] for row in report["rows"]} >= expected
    assert sum(row["check"] in CHECKS for row in report["rows"]) < 30


def layout_of(make: AttentionFactory, layout: PackedLayout, **wrong: torch.Tensor) -> Attend:
    return make(dataclasses.replace(layout, **wrong))


def one_byte_sequence_ids(make: AttentionFactory, layout: PackedLayout) -> Attend:
    """The 129th text and those after it have negative numbers, as filler has."""
    ids = layout.sequence_ids
    return layout_of(make, layout, sequence_ids=torch.where(ids > 127, ids - 256, ids))


def short_stream(make: AttentionFactory, layout: PackedLayout) -> Attend:
    """Indices that end at 2,047."""
    return layout_of(make, layout, pad_index=layout.pad_index.clamp(max=2047))


def turning_positions(make: AttentionFactory, layout: PackedLayout) -> Attend:
    """Rotary angles start over after 512 tokens."""
    attend = make(layout)
    stream = torch.arange(layout.position_ids.shape[0])
    again = stream - layout.position_ids + layout.position_ids % 512

    def turned(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, rope: Any = None, **rest: Any) -> torch.Tensor:
        return attend(q, k, v, rope=tuple(angles[again] for angles in rope), **rest)

    return turned


GRAPH_FAULTS = {
    "sequence ids of one byte": ("large batch", one_byte_sequence_ids),
    "stream indices up to 2,047": ("large batch", short_stream),
    "positions modulo 512": ("full length", turning_positions),
}
FACTORIES: dict[str, AttentionFactory] = {"cpu": cpu_attention, "onnx": graph_attention}


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=[pytest.mark.slow] * (target != fast), id=f"{name}-{target}")
        for name, fast in zip(GRAPH_FAULTS, ("onnx", "cpu", "cpu"), strict=True)
        for target in FACTORIES
    ],
)
def test_the_gate_catches_graphs(name: str, target: str, tmp_path: Path) -> None:
    check, factory = GRAPH_FAULTS[name]
    fault = Fault(caught={check}, attention=lambda layout: factory(FACTORIES[target], layout))
    bundle = export_with(fault, DEFAULT_CHECKPOINT, {}, tmp_path / "bundle", target)
    report = gate_against(bundle, DEFAULT_CHECKPOINT, threads=1)
    print_catch(f"{name} ({target})", report)
    assert check in failed_checks(report) <= set(CHECKS)


def fails(engine: SuspectEngine, batch: PackedBatch, logits: FloatArray) -> FloatArray:
    if len(batch.lengths) >= 100:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return logits


def gives_nan(engine: SuspectEngine, batch: PackedBatch, logits: FloatArray) -> FloatArray:
    return logits * np.float32("nan") if engine.crowded.now else logits


@pytest.mark.parametrize(
    ("spoil", "checks", "words"),
    [
        (fails, {"large batch", "many short texts"}, "illegal memory access"),
        (gives_nan, {"concurrent calls"}, "NaN"),
    ],
)
def test_an_engine_that_fails_in_a_check_fails_it_and_is_asked_the_others(
    spoil: Spoil, checks: set[str], words: str, gated: Any
) -> None:
    report = gate(SuspectEngine(spoil), gated("embedded"))
    assert failed_checks(report) == checks
    failed = [row for row in report["rows"] if not row["passed"]]
    assert all(row["value"] is None and words in row["note"] for row in failed)
    assert {row["check"] for row in report["rows"]} >= set(CHECKS) - {"profile edges"}


def test_ctrl_c_in_a_thread_of_the_gate_ends_it(gated: Any) -> None:
    def interrupted(engine: SuspectEngine, batch: PackedBatch, logits: FloatArray) -> FloatArray:
        if engine.crowded.now:
            raise KeyboardInterrupt
        return logits

    with pytest.raises(KeyboardInterrupt):
        gate(SuspectEngine(interrupted), gated("embedded"))


def rows_of(report: dict[str, Any], check: str) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["check"] == check]


@pytest.fixture
def slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model so large that neither reference answers its longest text in time."""
    monkeypatch.setattr(full_length, "TRANSFORMERS_FLOPS", 1.5e9)
    monkeypatch.setattr(full_length, "PACKED_FLOPS", 1.0)


@pytest.mark.usefixtures("slow_reference")
def test_where_the_reference_is_slow_full_length_is_a_repeated_token(gated: Any) -> None:
    correct = gate(SuspectEngine(lambda engine, batch, logits: logits), gated("embedded"))
    real, repeated = rows_of(correct, "full length")
    assert correct["passed"]
    assert (real["case"], real["note"]) == (
        "512 tokens, against transformers", "not 1,024 tokens, to save time; --thorough asks all"
    )  # fmt: skip
    assert repeated["case"] == "1,024 tokens, one of them repeated" and repeated["value"] < 1e-4
    spoiled = gate(SuspectEngine(ENGINE_FAULTS["full length"].spoil), gated("embedded"))
    assert failed_checks(spoiled) == {"full length"}
    (row,) = rows_of(
        gate(SuspectEngine(ENGINE_FAULTS["full length"].spoil), gated("embedded"), thorough=True), "full length"
    )
    assert row["case"] == "1,024 tokens, against transformers" and not row["passed"]


@pytest.mark.slow
@pytest.mark.usefixtures("slow_reference")
def test_a_repeated_token_proves_nothing_where_positions_are_embedded(
    gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_texts, "REAL_LONGEST", 300)
    monkeypatch.setattr(full_length, "TRANSFORMERS_FLOPS", 1e8)
    report = gate(SuspectEngine(lambda engine, batch, logits: logits), gated("bert-single"))
    real, repeated = rows_of(report, "full length")
    assert report["passed"] and real["case"].endswith("against transformers")
    assert repeated["case"].startswith("512 tokens, ")
    assert repeated["note"] == "1 texts have no known answer; they are finite"


def test_the_packed_encoder_judges_only_if_it_answers_as_transformers(
    gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_length, "TRANSFORMERS_FLOPS", 1.0)
    correct = SuspectEngine(lambda engine, batch, logits: logits)
    (row,) = rows_of(gate(correct, gated("embedded")), "full length")
    assert row["case"] == "1,024 tokens, against the packed encoder" and row["passed"]
    true = full_length.load_checkpoint

    def wrong(*args: Any, **options: Any) -> Any:
        return true(*args, **options, config_changes={"local_attention": 30})

    monkeypatch.setattr(full_length, "load_checkpoint", wrong)
    (row,) = rows_of(gate(correct, gated("embedded")), "full length")
    assert row["case"] == "1,024 tokens, against transformers" and row["passed"]


@pytest.mark.slow
def test_logits_of_every_token_are_bounded_in_memory(gated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, reference = gated("modernbert-mlm")
    vocabulary = bundle.manifest.architecture["vocab_size"]
    monkeypatch.setattr(known_texts, "OUTPUT_BYTES", 800 * vocabulary * 4)
    seen: list[int] = []

    def watched(engine: SuspectEngine, batch: PackedBatch, logits: FloatArray) -> FloatArray:
        seen.append(batch.num_tokens)
        return logits

    report = gate(SuspectEngine(watched), gated("modernbert-mlm"))
    (row,) = rows_of(report, "full length")
    assert report["passed"] and row["case"].startswith("800 tokens")
    assert row["note"] == "not 1,024 tokens: for the memory of its logits; --thorough asks all"
    grid = max(int(row["case"].split()[0]) for row in rows_of(report, "logits") if "tokens" in row["case"])
    assert max(seen[-30:]) == 800 and grid == 512
    (row,) = rows_of(gate(SuspectEngine(watched), gated("modernbert-mlm"), thorough=True), "full length")
    assert row["case"].startswith("1,024 tokens") and row["note"] == ""


def test_the_table_names_every_check_and_what_was_not_asked(
    gated: Any, slow_reference: None, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(gate(SuspectEngine(lambda engine, batch, logits: logits), gated("embedded")), None)
    out = capsys.readouterr().out
    assert all(check in out for check in CHECKS if check != "profile edges")
    assert "not 1,024 tokens, to save time" in " ".join(out.split())


@pytest.mark.parametrize(
    ("tokens", "sequences", "longest"),
    [(2560, 512, 90), (64, 1, 1), (64, 8, 64), (4096, 3, 700), (100, 400, 30), (5, 5, 5)],
)
def test_a_batch_is_filled_as_far_as_its_bounds_allow(tokens: int, sequences: int, longest: int) -> None:
    lengths = fill(tokens, sequences, longest, [14, 30, 3, 60])
    assert max(lengths) == longest and min(lengths) >= 1
    assert sum(lengths) == min(tokens, len(lengths) * longest)
    assert len(lengths) == min(sequences, tokens - longest + 1)


@pytest.mark.parametrize("count", range(4, 17))
def test_neither_sort_of_the_batch_out_of_order_is_its_own_inverse(count: int) -> None:
    lengths = np.array(unsorted(range(count)))
    assert sorted(lengths) == list(range(count))
    for order in (np.argsort(lengths), np.argsort(-lengths)):
        wrong = order[order] != np.arange(count)
        assert wrong.sum() >= 3
