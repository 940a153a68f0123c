"""The plots of the HTML report: which figures of a run go on which axes. Knows no SVG."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nopad.bench.report.derived import Figures, Table
from nopad.bench.report.intervals import Interval
from nopad.bench.schema import Subject, Workload
from nopad.charts.svg import Axis, Bar, Point, Series, bars, lines, scatter
from nopad.charts.units import number, ratio, seconds, seconds_tick, share, size, size_tick, tick

TOKENS = Axis(title="real tokens/s", write=tick, least=0.0)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot with its heading."""

    title: str
    remark: str
    svg: str
    small: bool = False  # three to a row


def latency(table: Table) -> list[Panel]:
    """Latency against length, and its ratio to the reference's: for each batch size with several fixed lengths."""
    groups: dict[int, list[Workload]] = defaultdict(list)
    for workload in table.report.workloads:
        if workload.kind == "fixed":
            groups[workload.batch].append(workload)
    y = Axis(title="latency of one call, median (log)", write=seconds_tick, log=True)
    times = Axis(
        title=f"times as fast as {table.report.reference}", write=lambda at: f"{tick(at)}×", least=0.0, most=1.0
    )
    length, panels = "tokens in each text (log)", []
    for batch, workloads in sorted(groups.items()):
        places = {float(workload.longest): workload for workload in workloads}
        title = f"{_texts(batch)} in a call"
        curves = _curves(table, places, length, y, lambda figures: figures.seconds, seconds, title)
        panels += [Panel(title=title, remark="Lower is better.", svg=svg) for svg in curves]
        curves = _curves(table, places, length, times, lambda figures: figures.ratio, ratio, title)
        panels += [Panel(title=f"{title}, ratio", remark="Higher is better.", svg=svg) for svg in curves]
    return panels


def throughput(table: Table) -> list[Panel]:
    """Real tokens/s against batch: one panel for each kind of text that was measured in several batch sizes."""
    groups: dict[str, dict[float, Workload]] = defaultdict(dict)
    for workload in table.report.workloads:
        fixed = workload.kind == "fixed"
        title = f"{workload.longest:,} tokens in each text" if fixed else f"Texts of {workload.source}"
        groups[title][float(workload.batch)] = workload
    panels = []
    for title, places in groups.items():
        curves = _curves(
            table, places, "texts in a call (log)", TOKENS, lambda figures: figures.tokens_per_second, number, title
        )
        panels += [Panel(title=title, remark="Higher is better.", svg=svg) for svg in curves]
    return panels


def speed(table: Table) -> list[Panel]:
    """Real tokens/s of every subject: one panel for each workload, with the limit of the machine's matrix products."""

    def bar(workload: Workload, style: int, subject: Subject) -> Bar | None:
        figures = table.figures.get((subject.name, workload.name))
        if figures is None:
            return None
        low, middle, high = figures.tokens_per_second
        text = number(middle) + (f" · {ratio(figures.ratio[1])}" if figures.ratio else "")
        tip = f"{subject.name}: {number(middle)} real tokens/s (95 %: {number(low)} to {number(high)})"
        strong = subject.family == "nopad"
        ends = _ends(figures.tokens_per_second)
        return Bar(name=subject.name, style=style, value=middle, interval=ends, text=text, tip=tip, strong=strong)

    panels = []
    for workload in table.report.workloads:
        rows, at = _rows(table, workload, bar), workload.limits.get("fp32")
        if any(row.value is not None for row in rows):
            limit = (at, f"fp32 limit {number(at)}") if at else None
            svg = bars(rows, TOKENS, label=f"Real tokens per second: {workload.name}", limit=limit)
            panels.append(Panel(title=workload.name, remark=about(workload), svg=svg, small=True))
    return panels


def memory(table: Table) -> list[Panel]:
    """Peak resident memory of every subject: one panel for each workload, all on one scale."""
    most = max((cell.peak_bytes for cell in table.report.cells if cell.peak_bytes), default=None)
    if most is None:
        return []
    step = next(
        step for power in range(3, 16) for step in (10**power, 2 * 10**power, 5 * 10**power) if most <= 5 * step
    )
    ticks = tuple(float(n * step) for n in range(6))
    axis = Axis(title="peak resident memory", write=size_tick, ticks=ticks, most=float(most))

    def bar(workload: Workload, style: int, subject: Subject) -> Bar | None:
        cell = table.cells.get((subject.name, workload.name))
        if cell is None or cell.peak_bytes is None:
            return None
        value, text, strong = float(cell.peak_bytes), size(cell.peak_bytes), subject.family == "nopad"
        return Bar(name=subject.name, style=style, value=value, text=text, tip=f"{subject.name}: {text}", strong=strong)

    panels = []
    for workload in table.report.workloads:
        rows = _rows(table, workload, bar)
        if any(row.value is not None for row in rows):
            svg = bars(rows, axis, label=f"Peak resident memory: {workload.name}")
            panels.append(Panel(title=workload.name, remark=about(workload), svg=svg, small=True))
    return panels


def quality(table: Table) -> list[Panel]:
    """Speed against accuracy where workloads have labels, else against agreement with the reference."""
    for name, title in (("accuracy", "accuracy"), ("agreement", "labels equal to the reference's")):
        panels = []
        for workload in table.report.workloads:
            series = []
            for style, subject in enumerate(table.report.subjects):
                cell, figures = table.at(subject.name, workload.name)
                value = getattr(cell, name, None)
                if figures is not None and value is not None:
                    at = figures.tokens_per_second[1]
                    tip = f"{subject.name}: {number(at)} real tokens/s, {title} {share(value)}"
                    point = Point(x=at, y=value, tip=tip)
                    strong = subject.family == "nopad"
                    series.append(Series(name=subject.name, style=style, points=(point,), strong=strong))
            if len(series) > 1:
                low, high = (end(curve.points[0].y for curve in series) for end in (min, max))
                x = Axis(title=f"{TOKENS.title} (log)", write=tick, log=True)
                y = Axis(title=title, write=_percent, least=min(low, high - 0.01), most=min(1.0, high + 0.002))
                svg = scatter(series, x, y, label=f"Speed against {title}: {workload.name}")
                panels.append(Panel(title=workload.name, remark="Up and to the right is better.", svg=svg))
        if panels:
            return panels
    return []


def about(workload: Workload) -> str:
    """A workload in a few words."""
    if workload.kind == "fixed":
        return f"{_texts(workload.texts)} of {workload.longest:,} tokens"
    padding = 1 - workload.tokens / workload.padded_tokens if workload.padded_tokens else 0.0
    tokens = f"{workload.tokens:,} tokens, the longest text {workload.longest:,}"
    return f"{_texts(workload.texts)}, {tokens}; padded to it, {share(padding)} would be padding"


def _rows(table: Table, workload: Workload, bar: Callable[[Workload, int, Subject], Bar | None]) -> list[Bar]:
    """A bar for every subject; where it has no figure, its status."""
    rows = []
    for style, subject in enumerate(table.report.subjects):
        row = bar(workload, style, subject)
        if row is None:
            cell = table.cells.get((subject.name, workload.name))
            status = cell.status if cell is not None else subject.status
            text = "not measured" if status == "ok" else status
            row = Bar(name=subject.name, style=style, value=None, text=text, strong=subject.family == "nopad")
        rows.append(row)
    return rows


def _curves(
    table: Table,
    places: Mapping[float, Workload],
    x_title: str,
    y: Axis,
    value: Callable[[Figures], Interval | None],
    write: Callable[[float], str],
    title: str,
) -> list[str]:
    """A plot with a line per subject through the workloads at `places`; none if no line has two points."""
    series = []
    for style, subject in enumerate(table.report.subjects):
        points = []
        for at, workload in sorted(places.items()):
            figures = table.figures.get((subject.name, workload.name))
            interval = value(figures) if figures is not None else None
            if interval is not None:
                low, middle, high = interval
                tip = f"{subject.name}, {workload.name}: {write(middle)} (95 %: {write(low)} to {write(high)})"
                points.append(Point(x=at, y=middle, interval=_ends(interval), tip=tip))
        if points:
            strong = subject.family == "nopad"
            series.append(Series(name=subject.name, style=style, points=tuple(points), strong=strong))
    if all(len(curve.points) < 2 for curve in series):
        return []
    x = Axis(title=x_title, write=tick, log=True, ticks=tuple(sorted(places)))
    return [lines(series, x, y, label=f"{y.title}, against {x_title}: {title}")]


def _ends(interval: Interval) -> tuple[float, float] | None:
    """The ends of an interval; None if they cannot be drawn."""
    low, _, high = interval
    return (low, high) if math.isfinite(high) and low > 0 else None


def _texts(count: int) -> str:
    return "1 text" if count == 1 else f"{count:,} texts"


def _percent(value: float) -> str:
    return f"{tick(round(value * 100, 6))} %"
