"""An engine for tests (nopad's own and users'): its answers come from a function, and it needs no file.

The shortest engine: the protocol `nopad.runtime.engines.base.Engine`, and its own factory. It is not in the registry:
`load(..., engine=FakeEngine(answer))` accepts the object itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nopad.model.packing import PackedBatch
from nopad.runtime.batching import CPU_TOKENS
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray


class FakeEngine:
    """Runs `answer(batch)`; records its batches. Raise inside `answer` to inject a failure."""

    name = "fake"
    token_budget = CPU_TOKENS
    threads: int | None = None
    profiles: tuple[ShapeProfile, ...] = ()

    def __init__(self, answer: Callable[[PackedBatch], FloatArray]) -> None:
        self.answer = answer
        self.batches: list[PackedBatch] = []
        self.closed = False

    def __call__(self, path: Path, artifact: Artifact, options: EngineOptions) -> FakeEngine:
        """Act as its own factory."""
        return self

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits from the function."""
        self.batches.append(batch)
        return self.answer(batch)

    def close(self) -> None:
        """Set `closed`."""
        self.closed = True
