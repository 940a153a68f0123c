"""How quiet the machine is: one fixed fp32 matrix product, timed in every round. Its best time gives the peak."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from nopad.bench.report.derived import Figures
from nopad.bench.report.intervals import spread, wide
from nopad.bench.schema import Noise
from nopad.runtime.engines.onnx_session import STOP_SPINNING, session_options

# 1,024 tokens through a layer of ModernBERT-base (hidden size 768 to query, key and value).
M, K, N = 1024, 768, 2304
FLOPS = 2.0 * M * K * N
REPEATS = 5
QUIET = 0.05  # a larger interquartile range over median means that something else was computing


class Probe:
    """The product through ONNX Runtime, with the weights packed in advance; through numpy where it is missing."""

    def __init__(self, threads: int) -> None:
        self._product = _through_onnxruntime(threads) or _through_numpy()
        self.best = float("inf")  # seconds
        self.seconds: list[float] = []

    def time(self) -> None:
        """Add the median of a few products to `seconds`, after one to warm up."""
        self._product()
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            self._product()
            times.append(time.perf_counter() - start)
        self.best = min(self.best, *times)
        self.seconds.append(float(np.median(times)))

    @property
    def peak_flops(self) -> float | None:
        """FLOP/s of the best product; None before the first."""
        return FLOPS / self.best if self.seconds else None


def judge(seconds: Sequence[float], peak_flops: float | None, figures: Iterable[Figures]) -> Noise:
    """Whether the run allows conclusions, by the probe's spread and the widths of the figures' intervals."""
    variation = spread(seconds)
    intervals = [cell.ratio or cell.seconds for cell in figures]
    unclear = sum(map(wide, intervals))
    loud = variation is not None and variation > QUIET
    probe = "not timed often enough to tell" if variation is None else f"varied by {variation:.1%}"
    widths = f"{unclear} of {len(intervals)} intervals are wider than 10 %"
    verdict = f"a fixed matrix product {probe} (interquartile range over the median of {len(seconds)} times); {widths}"
    conclusive = bool(intervals) and variation is not None and not loud and unclear * 4 <= len(intervals)
    if not conclusive:
        verdict = f"too noisy to conclude: {verdict}" if intervals else f"nothing was measured: {verdict}"
    return Noise(
        probe_seconds=tuple(seconds), peak_flops=peak_flops, spread=variation, conclusive=conclusive, verdict=verdict
    )


def _operands() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return random.standard_normal((M, K), dtype=np.float32), random.standard_normal((K, N), dtype=np.float32)


def _through_numpy() -> Callable[[], object]:
    a, b = _operands()
    return lambda: a @ b


def _through_onnxruntime(threads: int) -> Callable[[], object] | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    options = session_options(onnxruntime, threads, STOP_SPINNING)
    a, b = _operands()
    session = onnxruntime.InferenceSession(_graph(b.tobytes()), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def _graph(weights: bytes) -> bytes:
    """An ONNX model, c = a @ weights, in protobuf's wire format: the package onnx may not be installed."""
    matrix = b"".join((_number(1, K), _number(1, N), _number(2, 1), _bytes(8, b"b"), _bytes(9, weights)))
    node = _bytes(1, b"a") + _bytes(1, b"b") + _bytes(2, b"c") + _bytes(4, b"MatMul")
    graph = b"".join(
        (
            _bytes(1, node),
            _bytes(2, b"probe"),
            _bytes(5, matrix),
            _bytes(11, _value(b"a", K)),
            _bytes(12, _value(b"c", N)),
        )
    )
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 17))  # IR version 8, opset 17


def _value(name: bytes, columns: int) -> bytes:
    shape = b"".join(_bytes(1, _number(1, size)) for size in (M, columns))
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, shape)))


def _bytes(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
