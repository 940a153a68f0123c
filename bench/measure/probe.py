"""How quiet the machine is: one fixed fp32 matrix product, timed in every round; and how fast, by the best product of
each precision.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np

from nopad.bench.measure.products import FLOPS, Product, fp32_product, products
from nopad.bench.report.derived import Figures
from nopad.bench.report.intervals import spread, wide
from nopad.bench.schema import Noise, Peak

REPEATS = 5
QUIET = 0.05  # a larger interquartile range over median means that something else was computing


class Probe:
    """The fixed product, and the fastest library's product of each precision."""

    def __init__(self, threads: int) -> None:
        self._product = fp32_product(threads)
        self.seconds: list[float] = []
        self.best = float("inf")  # seconds of the fixed product
        self._fastest: dict[str, Product] = {}
        self._library: dict[str, str] = {}  # of the fastest, by precision
        self._best: dict[str, float] = {}  # seconds of the fastest product, by precision
        for precision, libraries in products(threads).items():
            times = {library: min(_times(product)) for library, product in libraries.items()}
            library = min(times, key=times.__getitem__)
            self._fastest[precision], self._library[precision] = libraries[library], library
            self._best[precision] = times[library]

    def time(self) -> None:
        """Add the median of a few fixed products to `seconds`; time the fastest ones, too."""
        times = _times(self._product)
        self.best = min(self.best, *times)
        self.seconds.append(float(np.median(times)))
        for precision, product in self._fastest.items():
            self._best[precision] = min(self._best[precision], *_times(product))

    @property
    def peak_flops(self) -> float | None:
        """FLOP/s of the best fixed product; None before the first."""
        return FLOPS / self.best if self.seconds else None

    @property
    def peaks(self) -> tuple[Peak, ...]:
        """What the fastest library has reached in each precision."""
        return tuple(
            Peak(precision=precision, library=library, flops=FLOPS / self._best[precision])
            for precision, library in self._library.items()
        )


def _times(product: Product) -> list[float]:
    """Seconds of a few products, after one to warm up."""
    product()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return times


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
