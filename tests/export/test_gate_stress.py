"""Faults that show only in large batches, at full length, at profiles' edges, in repeated or in concurrent calls.

Each passes the gate's first half (lengths and sentences: `test_gate_faults.py`), which was all of it once; the second
half must catch it, in the named check. `pytest -rP` prints what caught each, and by how much.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_faults import BrokenEngine, Fault, export_with, failed_checks, print_catch

from nopad.export.parity import run_gate
from nopad.export.reference import Reference
from nopad.export.stress import CHECKS
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
            bundle, _ = export_with(Fault(caught=set()), folder, {}, tmp_path_factory.mktemp(name) / "bundle", "onnx")
            made[name] = bundle, Reference(folder, bundle.manifest.task)
        return made[name]

    yield get


def gate(engine: SuspectEngine, gated: tuple[Bundle, Reference], **options: Any) -> dict[str, Any]:
    bundle, reference = gated
    half_window = bundle.manifest.architecture["local_attention"] // 2
    with load(bundle.path, engine=engine, threads=1, allow_unverified=True) as model:
        return run_gate(model, reference, half_window=half_window, **options).to_json()


@pytest.mark.parametrize("name", ENGINE_FAULTS)
def test_the_gate_catches_what_its_first_half_misses(name: str, gated: Any) -> None:
    where, check, spoil, profiles = ENGINE_FAULTS[name]
    report = gate(SuspectEngine(spoil, profiles), gated(where))
    print_catch(f"engine is wrong: {name}", report)
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
