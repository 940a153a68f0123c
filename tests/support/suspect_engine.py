"""Engines whose faults depend on their calls, and the gate's report on such an engine. Helpers, no tests."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gate_faults import BrokenEngine, Report

from nopad.export.parity.gate import run_gate
from nopad.export.reference.transformers import Reference
from nopad.model.packing import PackedBatch
from nopad.runtime.bundle import Bundle
from nopad.runtime.errors import ShapeError
from nopad.runtime.predictor import load
from nopad.runtime.profiles import ShapeProfile, choose_profile
from nopad.runtime.types import FloatArray


class SuspectEngine(BrokenEngine):
    """ONNX Runtime with answers spoiled according to its calls: how often each batch came, how many ran at once."""

    def __init__(self, spoil: Spoil, profiles: tuple[ShapeProfile, ...] = ()) -> None:
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


@dataclass(frozen=True, kw_only=True)
class EngineFault:
    """How an engine's answers are spoiled, and the check that must catch it."""

    caught: str
    spoil: Spoil
    checkpoint: str = "embedded"  # or a name of reference_models.CASES
    profiles: tuple[ShapeProfile, ...] = ()  # of the engine


def off(wrong: Callable[[SuspectEngine, PackedBatch], Any]) -> Spoil:
    """Adds 0.01 to all answers or to the rows where `wrong` is true."""

    def spoil(engine: SuspectEngine, batch: PackedBatch, logits: FloatArray) -> FloatArray:
        rows = np.broadcast_to(np.asarray(wrong(engine, batch)), len(logits))
        return logits + np.where(rows, np.float32(0.01), np.float32(0))[:, None]

    return spoil


def gate(engine: SuspectEngine, gated: tuple[Bundle, Reference], **options: Any) -> Report:
    """The gate's report on a bundle that `engine` answers for, judged by the reference."""
    bundle, reference = gated
    with load(bundle.path, engine=engine, threads=1, allow_unverified=True) as model:
        return run_gate(model, reference, **options).to_json()
