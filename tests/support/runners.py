"""How the embedded model is opened as a subject, and runners with scripted answers. Helpers, no tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nopad.bench.subjects.spec import Spec
from nopad.runtime.bundle import DEFAULT_BUNDLE
from nopad.runtime.types import FloatArray

GOOD = np.array([0.5, -0.5], dtype=np.float32)


class FakeRunner:
    """Answers with `answer`, a function of the number of the call and the number of texts."""

    version, precision = "0", "fp32"

    def __init__(self, answer: Callable[[int, int], list[FloatArray]], threads: int = 1, seconds: float = 0.0) -> None:
        self.answer, self._threads, self.seconds, self.calls, self.closed = answer, threads, seconds, 0, False

    def threads(self) -> int:
        return self._threads

    def run(self, texts: Sequence[str]) -> list[FloatArray]:
        self.calls += 1
        time.sleep(self.seconds)
        return self.answer(self.calls, len(texts))

    def tokens(self, texts: Sequence[str]) -> tuple[int, int]:
        return 10 * len(texts), 20 * len(texts)

    def close(self) -> None:
        self.closed = True


def good(call: int, texts: int) -> list[FloatArray]:
    return [GOOD] * texts


def spec(**fields: Any) -> Spec:
    values: dict[str, Any] = {
        "name": "nopad-fp32",
        "runner": "nopad",
        "path": str(DEFAULT_BUNDLE),
        "task": "text-classification",
        "threads": 1,
        "max_length": 1024,
        "engine": "onnx-cpu",
    }
    return Spec(**{**values, **fields})
