"""The result of a load run as a page, in the form of `nopad bench`'s. Every text of a report is escaped here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from nopad.bench.load.figures import Level, levels
from nopad.bench.load.markdown import COLUMNS, HOW, SUMMARY, level_row, remarks, result, summary_rows, workload_words
from nopad.bench.load.schema import LoadReport
from nopad.bench.report.html_page import Section, document, figure, heads, legend, table, verdict
from nopad.bench.report.html_tables import pairs
from nopad.bench.report.intervals import Interval
from nopad.charts.svg import Axis, Point, Series, escaped, key, lines
from nopad.charts.units import number, seconds, seconds_tick, tick

OFFERED = Axis(title="offered load, requests/s", write=tick, least=0.0)
CALLERS = Axis(title="callers who wait (log)", write=tick, log=True)
RATE = Axis(title="right answers/s", write=tick, least=0.0)
GOOD = Axis(title="right answers/s within the target", write=tick, least=0.0)
LATENCY = Axis(title="latency (log)", write=seconds_tick, log=True)


def page(report: LoadReport) -> str:
    """The page of `report`."""
    machine = str(report.machine.get("cpu") or "")
    target = f"p99 within {seconds(report.target_p99)}" if report.target_p99 is not None else ""
    header = [f'<p class="result">{escaped(result(report))}</p>']
    header += [
        verdict(text, loud="" if report.complete or n else "Incomplete.") for n, text in enumerate(remarks(report))
    ]
    return document(
        title=f"nopad bench --serve: {machine or report.created}",
        heading=" · ".join(part for part in (report.created, machine, target) if part),
        header="\n".join(header),
        sections=list(_sections(report)),
        footer=f"Written by nopad bench, load schema {report.schema_version}. It asks the network for nothing.",
    )


def _sections(report: LoadReport) -> Iterator[Section]:
    rows = "".join(f'<tr><th scope="row">{escaped(row[0])}</th>{_cells(row[1:])}</tr>' for row in summary_rows(report))
    yield "summary", "Summary", table(workload_words(report), heads(SUMMARY), [rows])
    plots = (
        ("open", "load", "Against offered load", OFFERED),
        ("closed", "callers", "Against callers who wait", CALLERS),
    )
    for mode, name, title, x in plots:
        if figures := "".join(_figures(report, mode, x)):
            names = legend([endpoint.name for endpoint in report.endpoints])
            yield name, title, f'{names}<div class="panels wide">{figures}</div>'
    yield "details", "All figures", _details(report)
    about = (
        ("Machine of the client", report.machine),
        ("Versions of the client", report.versions),
        ("Settings", report.settings),
        *(
            (f"{at.name}: {at.url}", {"protocol": at.protocol, "model": at.model, **at.about})
            for at in report.endpoints
        ),
    )
    listed = "".join(pairs(caption, values) for caption, values in about if values)
    yield "machine", "Machine, versions, servers", f'<div class="columns">{listed}</div>'
    how = "".join(f"<p>{escaped(text)}</p>" for text in HOW)
    yield (
        "reproduce",
        "Reproduce",
        f"<pre><code>{escaped(report.command)}</code></pre><h3>How it was measured</h3>{how}",
    )


def _figures(report: LoadReport, mode: str, x: Axis) -> Iterator[str]:
    wanted: list[tuple[str, str, Axis, Callable[[Level], Interval | None], Callable[[float], str]]] = [
        (name, "Lower is better.", LATENCY, lambda level, name=name: getattr(level, name), seconds)  # type: ignore[misc]
        for name in ("p50", "p99", "p999")
    ]
    wanted.append(("answered", "Higher is better.", RATE, lambda level: level.answered, number))
    if mode == "open" and report.target_p99 is not None:
        title = f"Of each load, what is answered within {seconds(report.target_p99)}."
        wanted.append(("goodput", title, GOOD, lambda level: level.good, number))
    for name, remark, y, value, write in wanted:
        series = []
        for style, endpoint in enumerate(report.endpoints):
            points = tuple(
                Point(
                    x=level.load,
                    y=at[1],
                    interval=(at[0], at[2]) if math.isfinite(at[2]) and at[0] > 0 else None,
                    tip=f"{endpoint.name}, {level.load:g}: {write(at[1])}",
                )
                for level in levels(report, endpoint.name, mode)
                if (at := value(level)) is not None
            )
            if points:
                series.append(Series(name=endpoint.name, style=style, points=points, strong=style == 0))
        if any(len(line.points) > 1 for line in series):
            title = {"p999": "p99.9"}.get(name, name)
            yield figure(title, remark, lines(series, x, y, label=f"{title}: {y.title}, against {x.title}"))


def _details(report: LoadReport) -> str:
    groups = []
    for style, endpoint in enumerate(report.endpoints):
        for mode in ("open", "closed"):
            found = [level_row(level) for level in levels(report, endpoint.name, mode)]
            if found:
                name = f"{key(style)} {escaped(endpoint.name)}"
                top = f'<tr class="group"><th scope="rowgroup" colspan="{len(COLUMNS)}">{name}</th></tr>'
                rows = (f'<tr><th scope="row">{escaped(row[0])}</th>{_cells(row[1:])}</tr>' for row in found)
                groups.append(top + "".join(rows))
    return table("Medians of the rounds, with the 95 % interval of p99.", heads(COLUMNS), groups)


def _cells(values: list[str]) -> str:
    return "".join(f"<td>{escaped(value)}</td>" for value in values)
