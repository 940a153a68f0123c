"""What a model has answered so far, as Triton's statistics extension counts it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

from nopad.runtime.scheduler.events import BatchRun, Event, Observer, tell

STEPS = ("queue", "compute_input", "compute_infer", "compute_output")


class _Times:
    """How often, and how long in all."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += max(0.0, seconds)

    def row(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


class Statistics:
    """The counts of one model. May be added to from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0.0  # seconds of Unix time
        self._texts = self._runs = 0
        self._success, self._fail = _Times(), _Times()
        self._steps = {step: _Times() for step in STEPS}
        self._by_size: defaultdict[int, _Times] = defaultdict(_Times)

    def answered(self, texts: int, seconds: float, *, tokenizing: float, queued: float, running: float) -> None:
        """A request was answered in `seconds`, of which its mean text spent the others on the way."""
        rest = seconds - tokenizing - queued - running
        with self._lock:
            self._last = time.time()
            self._texts += texts
            self._success.add(seconds)
            for step, taken in zip(STEPS, (queued, tokenizing, running, rest), strict=True):
                self._steps[step].add(taken)

    def failed(self, seconds: float) -> None:
        """A request was not answered."""
        with self._lock:
            self._fail.add(seconds)

    def observing(self, observer: Observer | None) -> Observer:
        """An observer of the model's scheduler that counts micro-batches, then calls the other one."""

        def observe(event: Event) -> None:
            if isinstance(event, BatchRun):
                with self._lock:
                    self._runs += 1
                    self._by_size[event.requests].add(event.seconds)
            tell(observer, event)

        return observe

    def row(self, name: str, version: str) -> dict[str, Any]:
        """The model's row of `model_stats`.

        Steps are of each request's mean text; `execution_count` and `batch_stats` are of micro-batches, which requests
        share. Nothing is cached.
        """
        with self._lock:
            none = _Times().row()
            steps = {step: times.row() for step, times in self._steps.items()}
            return {
                "name": name,
                "version": version,
                "last_inference": round(self._last * 1000),
                "inference_count": self._texts,
                "execution_count": self._runs,
                "inference_stats": {
                    "success": self._success.row(),
                    "fail": self._fail.row(),
                    **steps,
                    "cache_hit": none,
                    "cache_miss": none,
                },
                "batch_stats": [
                    {"batch_size": size, "compute_infer": times.row()} for size, times in sorted(self._by_size.items())
                ],
            }
