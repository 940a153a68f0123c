"""Plots as inline SVG: lines, points and bars with intervals. Knows numbers and names, neither benchmark nor page.

Every plot is an `<svg>` that is well-formed XML, without a colour in it. A page that shows plots puts `style_sheet()`
into its own style, and sets the colours `--ink`, `--soft`, `--grid` and `--card` that the sheet refers to. A series of
style n has the class `s{n}`, which sets `--c`; a marker of its own and a direct label say the same without colour. The
elements of a series have `data-s="{n}"`, for a page's script. All text is escaped here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

COLOURS = 8  # classes s0 to s7 of svg.css
# Unit shapes around 0, about the same area each.
MARKERS = (
    "M-1,0A1,1 0 1 0 1,0A1,1 0 1 0 -1,0Z",  # circle
    "M-.9,-.9H.9V.9H-.9Z",  # square
    "M0,-1.2L1.15,.85H-1.15Z",  # triangle
    "M0,-1.3L1.15,0 0,1.3 -1.15,0Z",  # diamond
    "M0,1.2L1.15,-.85H-1.15Z",  # triangle down
    "M-.4,-1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",  # plus
    "M-.6,-1.1H.6L1.2,0 .6,1.1H-.6L-1.2,0Z",  # hexagon
    "M0,-1.35L.38,-.42 1.35,-.42 .58,.2 .85,1.15 0,.58 -.85,1.15 -.58,.2 -1.35,-.42 -.38,-.42Z",  # star
)
CHARACTER = 7.2  # px reserved for a letter of a label: a wide font's at 12 px
LINE = 15.0  # px between the base lines of two labels


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value with its interval along y (None: unknown) and the sentence that a pointer over it shows."""

    x: float
    y: float
    interval: tuple[float, float] | None = None
    tip: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together. `style` picks colour and marker; `strong` draws them heavier than the others.

    Without `marked`, a line has no markers: for so many points that they would hide it.
    """

    name: str
    style: int
    points: tuple[Point, ...]
    strong: bool = False
    marked: bool = True


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row of `bars`. A value of None shows `text` alone, in the place of the bar."""

    name: str
    style: int
    value: float | None
    text: str
    interval: tuple[float, float] | None = None
    tip: str = ""
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Title with its unit, how a tick is written, and the ticks where the data sets them."""

    title: str
    write: Callable[[float], str]
    log: bool = False
    ticks: tuple[float, ...] | None = None
    least: float | None = None  # the axis never starts above `least` or ends below `most`
    most: float | None = None


def style_sheet() -> str:
    """CSS of the classes that plots have."""
    return files("nopad.charts").joinpath("svg.css").read_text("utf-8")


def lines(series: Sequence[Series], x: Axis, y: Axis, *, label: str) -> str:
    """A line per series with its markers and intervals, named at its right end."""
    return _points(series, x, y, label=label, joined=True)


def scatter(series: Sequence[Series], x: Axis, y: Axis, *, label: str) -> str:
    """Points without lines, each named beside it."""
    return _points(series, x, y, label=label, joined=False)


def parallel(series: Sequence[Series], axes: Sequence[Axis], *, label: str) -> str:
    """Parallel coordinates: point n of a series is its value on axis n; each line is darker than the one before it."""
    longest = max(len(axis.title) for axis in axes) * CHARACTER
    left, top, bottom, step = max(62.0, longest / 2 + 4), 52.0, 316.0, max(88.0, longest * 0.6)
    width = left + step * (len(axes) - 1) + longest / 2 + 4
    parts, scales = [], []
    for n, axis in enumerate(axes):
        x = left + step * n
        scale = _Scale(axis, [line.points[n].y for line in series], bottom, top)
        scales.append(scale)
        parts.append(_line("axis", x, bottom, x, top))
        parts.append(_text(x, 34.0 - 18 * (n % 2), axis.title, "title middle"))  # by turns, for long names
    for n, line in enumerate(series):
        places = [(left + step * place, scales[place](point.y)) for place, point in enumerate(line.points)]
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
        strength = 1.0 if line.strong else 0.15 + 0.6 * (n + 1) / len(series)
        heavy = " strong" if line.strong else ""
        drawn = f'<path class="line s{line.style % COLOURS}{heavy}" stroke-opacity="{strength:.2f}" d="{path}"/>'
        parts.append(_group(line.style, line.points[-1].tip if line.points else "", [drawn]))
    for n, (axis, scale) in enumerate(zip(axes, scales, strict=True)):  # over the lines, to be read
        parts += [
            _text(left + step * n - 5, scale(tick) + 4, axis.write(tick), "name tick end") for tick in scale.ticks
        ]
    return _svg(width, bottom + 16, label, parts)


def escaped(text: str) -> str:
    """Text for XML and HTML. Characters that XML cannot hold are replaced."""
    return escape(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


def marker(style: int, x: float, y: float, size: float = 5.0) -> str:
    """The marker of a style at that position."""
    shape = MARKERS[(style + style // COLOURS) % len(MARKERS)]
    return f'<path class="mark s{style % COLOURS}" transform="translate({x:.1f},{y:.1f}) scale({size:g})" d="{shape}"/>'


def key(style: int) -> str:
    """The marker of a style as a small picture of its own, for legends and table heads."""
    return f'<svg class="key" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">{marker(style, 8, 8)}</svg>'


def bars(rows: Sequence[Bar], x: Axis, *, label: str, limit: tuple[float, str] | None = None) -> str:
    """Horizontal bars from 0 with their intervals; `limit` is a dashed line and its name."""
    step, top = 26.0, 26.0 if limit else 6.0
    left = 30 + CHARACTER * max((len(row.name) * (1.1 if row.strong else 1) for row in rows), default=0)
    right = 14 + CHARACTER * max((len(row.text) for row in rows if row.value is not None), default=0)
    width = max(400.0, left + right + 130)
    bottom = top + step * len(rows)
    ends = [end for row in rows if row.value is not None for end in (row.value, *(row.interval or ()))]
    if limit:
        ends.append(limit[0])
    scale = _Scale(x, [0.0, *ends], left, width - right)
    parts = [_line("grid", scale(tick), top, scale(tick), bottom) for tick in scale.ticks]
    parts += [_text(scale(tick), bottom + 16, x.write(tick), "tick middle") for tick in scale.ticks]
    if limit:  # behind the bars, so that no name or value is struck through
        place, half = scale(limit[0]), CHARACTER * len(limit[1]) / 2
        parts.append(_line("limit", place, top - 4, place, bottom))
        parts.append(_text(min(place, width - half), top - 10, limit[1], "tick middle"))
    for n, row in enumerate(rows):
        middle = top + step * (n + 0.5)
        drawn = [
            marker(row.style, 10, middle),
            _text(22, middle + 4, row.name, "name strong" if row.strong else "name"),
        ]
        if row.value is None:
            drawn.append(_text(left + 6, middle + 4, row.text, "absent"))
        else:
            end = scale(row.value)
            drawn.append(
                f'<rect class="bar s{row.style % COLOURS}" x="{left:.1f}" y="{middle - 7:.1f}" '
                f'width="{max(end - left, 1):.1f}" height="14" rx="2"/>'
            )
            if row.interval:
                low, high = map(scale, row.interval)
                drawn.append(_whisker(low, middle, high, middle))
                end = max(end, high)
            drawn.append(_text(end + 8, middle + 4, row.text, "value"))
        parts.append(_group(row.style, row.tip, drawn))
    parts.append(_line("axis", left, top, left, bottom))
    parts.append(_text((left + width - right) / 2, bottom + 34, x.title, "title middle"))
    return _svg(width, bottom + 42, label, parts)


class _Scale:
    """Maps values to positions between two ends, linear or logarithmic."""

    def __init__(self, axis: Axis, values: Iterable[float], start: float, end: float) -> None:
        drawable = [value for value in values if math.isfinite(value) and (value > 0 or not axis.log)] or [1.0]
        low = min(drawable if axis.least is None else [*drawable, axis.least])
        high = max(drawable if axis.most is None else [*drawable, axis.most])
        self.log, self.start, self.end = axis.log, start, end
        if self.log:
            low, high = low / 1.15, high * 1.15
        else:
            low, high = (min(0.0, low), low + 1.0) if low == high else (low, high + 0.03 * (high - low))
        self.low, self.high = low, high
        ticks = axis.ticks or (_log_ticks(low, high) if self.log else _linear_ticks(low, high))
        self.ticks = [tick for tick in ticks if low <= tick <= high * (1 + 1e-9)]

    def __call__(self, value: float) -> float:
        if self.log:
            low, high, value = math.log(self.low), math.log(self.high), math.log(max(value, self.low))
        else:
            low, high = self.low, self.high
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [n * 10.0**d for d in decades for n in factors if low <= n * 10.0**d <= high]
        if len(ticks) >= 4:
            break
    return ticks


def _points(series: Sequence[Series], x: Axis, y: Axis, *, label: str, joined: bool) -> str:
    width, height, left, top, bottom = 450.0, 340.0, 58.0, 30.0, 294.0
    longest = max((len(line.name) for line in series), default=0) * CHARACTER
    right = width - (longest + 40 if joined else 24)
    every = [point for line in series for point in line.points]
    inset = 0.0 if joined else 14.0  # a point's label may stand outside, its marker may not
    across = _Scale(x, [point.x for point in every], left + inset, right - inset)
    reach = [value for point in every for value in (point.y, *(point.interval or ()))]
    up = _Scale(y, reach, bottom - inset, top + inset)
    parts = [_line("grid", left, up(tick), right, up(tick)) for tick in up.ticks]
    parts += [_text(left - 8, up(tick) + 4, y.write(tick), "tick end") for tick in up.ticks]
    parts += [_line("grid", across(tick), top, across(tick), bottom) for tick in across.ticks]
    parts += [_text(across(tick), bottom + 18, x.write(tick), "tick middle") for tick in across.ticks]
    parts += [_line("axis", left, bottom, right, bottom), _line("axis", left, top, left, bottom)]
    parts += [_text((left + right) / 2, bottom + 40, x.title, "title middle"), _text(4, 14, y.title, "title")]
    places = [[(across(point.x), up(point.y)) for point in line.points] for line in series]
    named = _end_labels(places, top, bottom) if joined else _beside_labels(series, places, left, width, top, bottom)
    # Strong series are drawn last, over the others.
    for n in sorted(range(len(series)), key=lambda n: series[n].strong):
        line, drawn = series[n], []
        if not line.points:
            continue
        if joined and len(line.points) > 1:
            path = "M" + "L".join(f"{px:.1f},{py:.1f}" for px, py in places[n])
            drawn.append(f'<path class="line s{line.style % COLOURS}{" strong" if line.strong else ""}" d="{path}"/>')
        for point, (px, py) in zip(line.points, places[n], strict=True) if line.marked else ():
            inner = [marker(line.style, px, py, 6 if line.strong else 5)]
            if point.interval:
                low, high = map(up, point.interval)
                inner.insert(0, _whisker(px, low, px, high))
            drawn.append(_group(None, point.tip, inner))
        (px, py), (tx, ty) = places[n][-1], named[n]
        if joined:
            tx = right + 30
            drawn.append(f'<path class="leader" d="M{px + 8:.1f},{py:.1f}L{right + 12:.1f},{ty:.1f}"/>')
            drawn.append(marker(line.style, right + 20, ty, 4.5))
        elif abs(ty - py) > 4:
            side = min(max(px, tx), tx + CHARACTER * len(line.name))  # the nearest point of the name
            drawn.append(f'<path class="leader" d="M{px:.1f},{py:.1f}L{side:.1f},{ty + (4 if ty < py else -6):.1f}"/>')
        drawn.append(_text(tx, ty + 4, line.name, "name strong" if line.strong else "name"))
        parts.append(_group(line.style, "", drawn))
    return _svg(width, height, label, parts)


def _end_labels(
    places: Sequence[Sequence[tuple[float, float]]], top: float, bottom: float
) -> list[tuple[float, float]]:
    """Positions of the names at the right ends, in the lines' order and apart from each other."""
    order = sorted((n for n in range(len(places)) if places[n]), key=lambda n: places[n][-1][1])
    heights = [places[n][-1][1] for n in order]
    for n in range(1, len(heights)):
        heights[n] = max(heights[n], heights[n - 1] + LINE)
    lowest = bottom
    for n in reversed(range(len(heights))):  # too far down: push back up
        heights[n] = min(heights[n], lowest)
        lowest = heights[n] - LINE
    labels = [(0.0, 0.0)] * len(places)
    for n, height in zip(order, heights, strict=True):
        labels[n] = (0.0, max(height, top - LINE))
    return labels


def _beside_labels(
    series: Sequence[Series],
    places: Sequence[Sequence[tuple[float, float]]],
    left: float,
    right: float,
    top: float,
    bottom: float,
) -> list[tuple[float, float]]:
    """Where each name stands beside its last point: the first place that covers no marker and no other name."""
    occupied = [(px - 7, py - 7, px + 7, py + 7) for line in places for px, py in line]
    labels = [(0.0, 0.0)] * len(series)
    # Strong series choose first.
    for n in sorted((n for n in range(len(series)) if places[n]), key=lambda n: not series[n].strong):
        (px, py), wide = places[n][-1], CHARACTER * len(series[n].name) * (1.1 if series[n].strong else 1)
        near = [(px + 11, py), (px - 11 - wide, py)]
        for down in (18, 33, 48, 63):
            near += [(px + side, py + way * down) for way in (-1, 1) for side in (-wide / 2, 11, -11 - wide)]
        boxes = [(tx, ty, (tx - 3, ty - 7, tx + wide + 3, ty + 7)) for tx, ty in near]
        inside = [
            (tx, ty, box) for tx, ty, box in boxes if tx >= left and box[2] <= right and top <= ty <= bottom - 4
        ] or boxes[:1]
        free = [entry for entry in inside if not any(_overlap(entry[2], other) for other in occupied)]
        tx, ty, box = (free or inside)[0]
        occupied.append(box)
        labels[n] = (tx, ty)
    return labels


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    inside = "".join(parts)
    return (
        f'<svg class="plot" role="img" aria-label="{escaped(label)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">{inside}</svg>'
    )


def _group(style: int | None, tip: str, parts: Sequence[str]) -> str:
    title = f"<title>{escaped(tip)}</title>" if tip else ""
    series = "" if style is None else f' data-s="{style}"'
    return f"<g{series}>{title}{''.join(parts)}</g>"


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="{name}" d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}"/>'


def _whisker(x1: float, y1: float, x2: float, y2: float) -> str:
    """An interval with its two end strokes."""
    dx, dy = (4.0, 0.0) if x1 == x2 else (0.0, 4.0)
    ends = "".join(f"M{x - dx:.1f},{y - dy:.1f}L{x + dx:.1f},{y + dy:.1f}" for x, y in ((x1, y1), (x2, y2)))
    return f'<path class="whisker" d="M{x1:.1f},{y1:.1f}L{x2:.1f},{y2:.1f}{ends}"/>'


def _text(x: float, y: float, text: str, name: str) -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}">{escaped(text)}</text>'
