"""When requests arrive: planned times at an offered rate. Pure; knows no server.

The times are planned before the first request is sent, so that a slow server cannot slow down its own load: a closed
loop, whose callers wait for their answers, would leave out just those requests that had met a server that stalls
("coordinated omission").
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nopad.runtime.errors import UsageError

Times = npt.NDArray[np.float64]
FORMS = "poisson, constant, bursts:SIZE, on-off:SECONDS:SECONDS"


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """How requests arrive. The mean rate is always the offered one."""

    kind: Literal["poisson", "constant", "bursts", "on-off"] = "poisson"
    size: int = 1  # bursts: requests at the same moment
    on: float = 1.0  # on-off: seconds with requests, then
    off: float = 0.0  # seconds without

    def times(self, rate: float, seconds: float, seed: int) -> Times:
        """Sorted times in [0, `seconds`) of about `rate` requests a second."""
        draw = np.random.default_rng(seed)
        if self.kind == "constant":
            return np.arange(math.ceil(rate * seconds - 1e-9)) / rate
        if self.kind == "bursts":
            return np.repeat(_poisson(rate / self.size, seconds, draw), self.size)
        if self.kind == "on-off":  # Poisson on a clock that stands still while it is off
            cycle = self.on + self.off
            clock = self.on * (seconds // cycle) + min(seconds % cycle, self.on)
            busy = _poisson(rate * seconds / clock, clock, draw)
            return busy + (busy // self.on) * self.off
        return _poisson(rate, seconds, draw)


def parse(text: str) -> Arrivals:
    """The arrivals that an option names. Raises `UsageError`."""
    number = r"(\d+(?:\.\d+)?)"
    if text in ("poisson", "constant"):
        return Arrivals(kind="poisson" if text == "poisson" else "constant")
    if match := re.fullmatch(r"bursts:([1-9]\d{0,5})", text):
        return Arrivals(kind="bursts", size=int(match[1]))
    if (match := re.fullmatch(f"on-off:{number}:{number}", text)) and float(match[1]) > 0:
        return Arrivals(kind="on-off", on=float(match[1]), off=float(match[2]))
    raise UsageError(f"--arrivals {text!r}: there are {FORMS}")


def _poisson(rate: float, seconds: float, draw: np.random.Generator) -> Times:
    """Times with exponential gaps: their number is Poisson's, and given it they are uniform."""
    return np.sort(draw.uniform(0.0, seconds, draw.poisson(rate * seconds)))
