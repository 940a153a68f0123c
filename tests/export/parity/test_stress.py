"""Faults that show only in large batches, at full length, at profiles' edges, in repeated or in concurrent calls.

Each passes the gate's first half (lengths and sentences: `test_gate_faults.py`), which was all of it once; the second
half must catch it, in the named check. `pytest -rP` prints what caught each, and by how much.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate_faults import BrokenEngine, Fault, export_with, failed_checks, gate_against, print_catch

from nopad.export.commands.gate_report import print_report
from nopad.export.graph.cpu import cpu_attention
from nopad.export.parity import full_length, known_texts
from nopad.export.parity.gate import run_gate
from nopad.export.parity.stress import CHECKS, fill
from nopad.export.reference.transformers import Reference
from nopad.model.attention import Attend, AttentionFactory, PackedLayout, graph_attention
from nopad.model.packing import PackedBatch
from nopad.runtime.bundle import DEFAULT_CHECKPOINT, Bundle
from nopad.runtime.errors import ShapeError
from nopad.runtime.predictor import load
from nopad.runtime.profiles import ShapeProfile, choose_profile
from nopad.runtime.types import FloatArray

FULL = 1024  # the longest text of all models here
NARROW = ShapeProfile(tokens=(64, 256, 1024), sequences=(1, 8, 100), longest=(1, 64, 128))
WIDE = ShapeProfile(tokens=(64, 1024, 2048), sequences=(1, 4, 24), longest=(1, 512, FULL))


class SuspectEngine(BrokenEngine):
    """ONNX Runtime with its answers spoiled by what it has been through: how often it was called, and by how many."""

    def __init__(
        self,
        spoil: Callable[[SuspectEngine, PackedBatch, FloatArray], FloatArray],
        profiles: tuple[ShapeProfile, ...] = (),
    ) -> None:
        super().__init__(lambda batch, logits: spoil(self, batch, logits))
        self.profiles = profiles
        self.calls: Counter[bytes] = Counter()  # of each batch
        self.kept: dict[tuple[int, ...], FloatArray] = {}  # answers, by the shape of their batch
        self.lock = threading.Lock()
        self.running = 0
        self.crowded = threading.local()

    def run(self, batch: PackedBatch) -> FloatArray:
        if self.profiles and choose_profile(self.profiles, batch) is None:
            raise ShapeError("no profile")
        with self.lock:
            self.calls[batch.input_ids.tobytes() + batch.pad_index.tobytes()] += 1
            self.running += 1
        try:
            logits = self.engine.run(batch)
            self.crowded.now = self.running > 1
            return self.spoil(batch, logits)
        finally:
            with self.lock:
                self.running -= 1


Spoil = Callable[[SuspectEngine, PackedBatch, FloatArray], FloatArray]


def off(wrong: Callable[[SuspectEngine, PackedBatch], Any]) -> Spoil:
    """Off by 0.01, in all answers or in the rows that `wrong` says."""

    def spoil(engine: SuspectEngine, batch: PackedBatch, logits: FloatArray) -> FloatArray:
        rows = np.broadcast_to(np.asarray(wrong(engine, batch)), len(logits))
        return logits + np.where(rows, np.float32(0.01), np.float32(0))[:, None]

    return spoil


def previous_answer(engine: SuspectEngine, batch: PackedBatch, logits: FloatArray) -> FloatArray:
    """Of the call before, where that had the same shape: a buffer that is read too early."""
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


# Bundle, check that must catch it, fault, profiles.
ENGINE_FAULTS: dict[str, tuple[str, str, Spoil, tuple[ShapeProfile, ...]]] = {
    "batches of 100 texts or more": (
        "embedded", "large batch", off(lambda engine, batch: len(batch.lengths) >= 100), ()
    ),
    "the 400th text of a batch": (
        "embedded", "large batch", off(lambda engine, batch: np.arange(len(batch.lengths)) == 399), ()
    ),
    "streams of more than 2,048 tokens": (
        "embedded", "large batch", off(lambda engine, batch: batch.num_tokens > 2048), ()
    ),
    "64 texts of one token": ("embedded", "many short texts", one_token_texts_change_places, ()),
    "full length": ("embedded", "full length", off(lambda engine, batch: batch.lengths.max() >= FULL), ()),
    "full length, second half": (
        "modernbert-token", "full length",
        off(lambda engine, batch: (batch.lengths.max() >= FULL) & (batch.position_ids >= FULL // 2)), (),
    ),
    "full length, last token": (
        "modernbert-token", "full length", off(lambda engine, batch: batch.position_ids == FULL - 1), ()
    ),
    "the third call with a batch": ("embedded", "repeated calls", off(third_call), ()),
    "the answers of the call before, if of one shape": ("embedded", "repeated calls", previous_answer, ()),
    "two calls at once": ("embedded", "concurrent calls", off(lambda engine, batch: engine.crowded.now), ()),
    "a profile's most tokens": (
        "embedded", "profile edges", off(lambda engine, batch: len(batch.input_ids) == 2048), (NARROW, WIDE)
    ),
    "a profile's most texts": (
        "embedded", "profile edges", off(lambda engine, batch: len(batch.lengths) == 100), (NARROW, WIDE)
    ),
    "a profile's longest text": (
        "embedded", "profile edges", off(lambda engine, batch: batch.pad_index.shape[1] == FULL), (NARROW, WIDE)
    ),
    "five texts, the first of a bucket": (
        "embedded", "profile edges",
        off(lambda engine, batch: batch.pad_index.shape == (5, 64)), (NARROW, WIDE),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def gated(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[Bundle, Reference]]]:
    made: dict[str, tuple[Bundle, Reference]] = {}

    def get(name: str) -> tuple[Bundle, Reference]:
        if name not in made:
            folder = DEFAULT_CHECKPOINT if name == "embedded" else checkpoint(name)
            bundle = export_with(Fault(caught=set()), folder, {}, tmp_path_factory.mktemp(name) / "bundle", "onnx")
            made[name] = bundle, Reference(folder, bundle.manifest.task)
        return made[name]

    yield get


def gate(engine: SuspectEngine, gated: tuple[Bundle, Reference], **options: Any) -> dict[str, Any]:
    bundle, reference = gated
    with load(bundle.path, engine=engine, threads=1, allow_unverified=True) as model:
        return run_gate(model, reference, **options).to_json()


# Their like is in the fast suite; make test-full has all.
SLOW = {
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
    where, check, spoil, profiles = ENGINE_FAULTS[name]
    report = gate(SuspectEngine(spoil, profiles), gated(where))
    print_catch(f"engine: {name}", report)
    assert check in failed_checks(report) <= set(CHECKS)


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
    """Rotary angles begin anew after 512 tokens."""
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
    monkeypatch.setattr(full_length, "TRANSFORMERS_FLOPS", 1e9)
    monkeypatch.setattr(full_length, "PACKED_FLOPS", 1.0)


@pytest.mark.usefixtures("slow_reference")
def test_where_the_reference_is_slow_full_length_is_a_repeated_token(gated: Any) -> None:
    honest = gate(SuspectEngine(lambda engine, batch, logits: logits), gated("embedded"))
    real, repeated = rows_of(honest, "full length")
    assert honest["passed"]
    assert (real["case"], real["note"]) == (
        "512 tokens, against transformers", "not 1,024 tokens, to save time; --thorough asks all"
    )  # fmt: skip
    assert repeated["case"] == "1,024 tokens, one of them repeated" and repeated["value"] < 1e-4
    spoiled = gate(SuspectEngine(ENGINE_FAULTS["full length"][2]), gated("embedded"))
    assert failed_checks(spoiled) == {"full length"}
    (row,) = rows_of(
        gate(SuspectEngine(ENGINE_FAULTS["full length"][2]), gated("embedded"), thorough=True), "full length"
    )
    assert row["case"] == "1,024 tokens, against transformers" and not row["passed"]


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
    honest = SuspectEngine(lambda engine, batch, logits: logits)
    (row,) = rows_of(gate(honest, gated("embedded")), "full length")
    assert row["case"] == "1,024 tokens, against the packed encoder" and row["passed"]
    true = full_length.load_checkpoint

    def wrong(*args: Any, **options: Any) -> Any:
        return true(*args, **options, config_changes={"local_attention": 30})

    monkeypatch.setattr(full_length, "load_checkpoint", wrong)
    (row,) = rows_of(gate(honest, gated("embedded")), "full length")
    assert row["case"] == "1,024 tokens, against transformers" and row["passed"]


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
