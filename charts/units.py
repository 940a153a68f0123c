"""Numbers as people read them: times, bytes, shares, ratios. Knows no benchmark."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Three significant digits, thousands with commas."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞"
    size = abs(value)
    for least, digits in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3)):
        if size >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.2e}" if size < 1e-3 else f"{value:.3g}"


def tick(value: float) -> str:
    """A tick of an axis, without needless digits."""
    return f"{value:,.10g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    if value < 1e-3:
        return f"{number(value * 1e6)} µs" if value else "0 s"
    if value < 1:
        return f"{number(value * 1e3)} ms"
    if value < 600:
        return f"{number(value)} s"
    return f"{number(value / 60)} min"


def seconds_tick(value: float) -> str:
    """The same for a tick of an axis."""
    if value < 1e-3:
        return f"{tick(value * 1e6)} µs"
    return f"{tick(value * 1e3)} ms" if value < 1 else f"{tick(value)} s"


def size(value: float) -> str:
    """Bytes in powers of 1,000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor * 0.9995:
            return f"{number(value / factor)} {unit}"
    return f"{value:,.0f} B"


def size_tick(value: float) -> str:
    """The same for a tick of an axis."""
    unit, factor = next((pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if value >= pair[1]), ("B", 1.0))
    return f"{tick(value / factor)} {unit}" if value else "0"


def share(value: float) -> str:
    """0..1 as a percentage; 0 % and 100 % only where it is exactly that."""
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    written = f"{value * 100:.1f}"
    return f"{value * 100:.3f} %" if written in ("100.0", "0.0") else f"{written} %"


def ratio(value: float) -> str:
    """Times the reference."""
    return f"{value:.2f}×" if value < 9.995 else f"{number(value)}×"
