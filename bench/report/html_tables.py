"""The tables of the HTML report. Every text that comes from a report is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nopad.bench.report.derived import Figures, Table
from nopad.bench.report.html_page import heads
from nopad.bench.report.html_page import table as table_of
from nopad.bench.report.html_plots import about
from nopad.bench.report.intervals import Interval, wide
from nopad.bench.report.markdown import BEST, BEST_LEGEND, agreement, best_rows
from nopad.bench.schema import Cell, Subject
from nopad.charts.svg import escaped, key
from nopad.charts.units import number, ratio, seconds, share, size

FORECAST = '<span class="forecast">Forecast</span>'
NONE = "–"


def summary(table: Table) -> str:
    """Workloads by subjects: latency, throughput, ratio, agreement."""
    subjects, reference = table.report.subjects, table.report.reference
    head = "".join(_subject_head(style, subject, reference) for style, subject in enumerate(subjects))
    rows = []
    for workload in table.report.workloads:
        reached = [figures for subject in subjects if (figures := table.figures.get((subject.name, workload.name)))]
        fastest = min((figures.p50 for figures in reached), default=None)
        cells = []
        for subject in subjects:
            cell, figures = table.at(subject.name, workload.name)
            if cell is not None and figures is not None:
                best = ' class="best"' if figures.p50 == fastest else ""
                cells.append(f"<td{best}>{_summary_cell(cell, figures, subject.name == reference)}</td>")
            else:
                cells.append(f'<td class="absent">{escaped(_status(cell, subject))}</td>')
        name = f"{escaped(workload.name)}<small>{escaped(_short(workload.texts, workload.tokens))}</small>"
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    compared = (
        f"how many times as fast as {reference} that is, with its 95 % interval (* where that is too wide to conclude "
        f"from); agreement, the share of labels equal to those of {reference}, of BERT to BERT in transformers; "
        if reference
        else ""
    )
    caption = (
        f"In each cell: median time of one pass over the texts; real tokens per second; {compared}accuracy, where the "
        "texts have labels. Shaded: the fastest of the row."
    )
    return table_of(caption, f'<th scope="col">workload</th>{head}', ["".join(rows)])


def best(table: Table) -> str | None:
    """The fastest of nopad in each precision beside the best peer; None where nothing was compared."""
    rows = best_rows(table)
    body = "".join(f'<tr><th scope="row">{escaped(row[0])}</th>{_cells(map(escaped, row[1:]))}</tr>' for row in rows)
    return table_of(BEST_LEGEND, heads(BEST), [body]) if rows else None


def details(table: Table) -> str:
    """Every measured cell with all its figures, grouped by workload."""
    titles = ("subject", "p50", "p90", "p99", "real tokens/s", "× reference", "padding", "of limit", "peak memory")
    head = heads((*titles, "agreement", "logits", "accuracy", "passes"))
    groups = []
    for workload in table.report.workloads:
        text = f"{escaped(workload.name)}<small>{escaped(about(workload))}</small>"
        rows = [f'<tr class="group"><th scope="rowgroup" colspan="13">{text}</th></tr>']
        for style, subject in enumerate(table.report.subjects):
            cell, figures = table.at(subject.name, workload.name)
            name = f'<th scope="row">{key(style)} {escaped(subject.name)}</th>'
            if cell is not None and figures is not None:
                rows.append(f"<tr>{name}{_cells(_detail(cell, figures))}</tr>")
            else:
                rows.append(
                    f'<tr>{name}<td class="text absent" colspan="12">{escaped(_status(cell, subject))}</td></tr>'
                )
        groups.append("".join(rows))
    caption = (
        "p50, p90, p99: of one pass over the texts. Padding: share of the computed tokens that are not real. Of limit: "
        "throughput as a share of what the machine's fastest matrix products of that precision allow. Peak "
        "memory: resident, of a fresh process that ran this workload. Logits: largest difference. Small: 95 % "
        "intervals, * too wide to "
        "conclude from."
    )
    return table_of(caption, head, groups)


def subjects(table: Table) -> str:
    """What each subject is, and what it costs before the first answer."""
    titles = ("subject", "model", "precision", "engine", "pads", "threads", "version", "build", "import", "load")
    head = heads((*titles, "cold first call", "memory after load", "file"))
    rows = []
    for style, subject in enumerate(table.report.subjects):
        what = (
            subject.model,
            subject.precision,
            subject.engine,
            "yes" if subject.padded else "no",
            str(subject.threads),
            subject.version,
        )
        times = (subject.build_seconds, subject.import_seconds, subject.load_seconds, subject.cold_seconds)
        values = [*(part or NONE for part in what), *(_or_none(at, seconds) for at in times)]
        values += [_or_none(subject.loaded_bytes, size), _or_none(subject.file_bytes, size)]
        cells = "".join(f"<td>{escaped(value)}</td>" for value in values)
        rows.append(f'<tr><th scope="row">{key(style)} {escaped(subject.name)}</th>{cells}</tr>')
    caption = "Build: from the checkpoint to the subject's file. Import, load and cold first call: in a fresh process."
    return table_of(caption, head, ["".join(rows)])


def remarks(table: Table) -> str | None:
    """Subjects and cells without figures, with the reason, and notes on the others; None where there are none."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for subject in table.report.subjects:
        if subject.status != "ok" or subject.note:
            rows[(subject.name, subject.status, subject.note)] = ["every workload"]
        for workload in table.report.workloads if subject.status == "ok" else ():
            cell = table.cells.get((subject.name, workload.name))
            if cell is None or cell.status != "ok" or cell.note:
                status, note = (cell.status, cell.note) if cell else ("not run", "")
                rows.setdefault((subject.name, status, note), []).append(workload.name)
    if not rows:
        return None
    body = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>'
        + "".join(f'<td class="text">{escaped(text or NONE)}</td>' for text in (", ".join(on), status, note))
        + "</tr>"
        for (name, status, note), on in rows.items()
    )
    head = heads(("subject", "workload", "status", "reason"), text=True)
    return table_of("Figures that this report lacks and why, and remarks on the others.", head, [body])


def forecasts(rows: Sequence[Mapping[str, Any]]) -> str:
    """Forecasts with all their keys, each row labelled, grouped by GPU."""
    order = ["subject", "precision", "seconds", "low", "high", "error", "tokens_per_second", "bound", "flops", "bytes"]
    every = {name for row in rows for name in row} - {"label", "gpu", "workload", "assumes"}
    columns = [name for name in order if name in every] + sorted(every - set(order))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row.get("gpu", "")), []).append(row)
    bodies = []
    for gpu, members in groups.items():
        assumed = "; ".join(dict.fromkeys(str(row["assumes"]) for row in members if row.get("assumes")))
        about = f"<small>{escaped(assumed)}</small>" if assumed else ""
        lines = [f'<tr class="group"><th scope="rowgroup" colspan="{len(columns) + 1}">{escaped(gpu)}{about}</th></tr>']
        for row in members:
            cells = "".join(f"<td>{escaped(_forecast_value(name, row.get(name)))}</td>" for name in columns)
            name = f"{FORECAST} {escaped(str(row.get('workload', '')))}"
            lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
        bodies.append("".join(lines))
    head = heads(("workload", *(name.replace("_per_second", "/s").replace("_", " ") for name in columns)))
    caption = "Computed from the model's work and the data sheets' peaks. Nothing in this table was measured."
    return table_of(caption, head, bodies)


def pairs(caption: str, values: Mapping[str, Any]) -> str:
    """Names and values, two columns."""
    rows = "".join(
        f'<tr><th scope="row">{escaped(name.removesuffix("_bytes").replace("_", " "))}</th>'
        f"<td>{escaped(_plain(name, value))}</td></tr>"
        for name, value in values.items()
    )
    return table_of(caption, "", [rows], name="pairs")


def ends(interval: Interval) -> str:
    """The ends of a ratio's interval, with a star where it is too wide to conclude from; a single round has none."""
    low, _, high = interval
    star = ' <abbr title="too wide to conclude from">*</abbr>' if wide(interval) else ""
    return f"{low:.2f} to {high:.2f}{star}" if math.isfinite(high) else f"one round{star}"


def _subject_head(style: int, subject: Subject, reference: str | None) -> str:
    remark = f"{subject.model} {subject.precision}"
    mark = "<small>the reference</small>" if subject.name == reference else ""
    return f'<th scope="col">{key(style)} {escaped(subject.name)}<small>{escaped(remark)}</small>{mark}</th>'


def _summary_cell(cell: Cell, figures: Figures, is_reference: bool) -> str:
    lines = [f"<b>{seconds(figures.p50)}</b>", f"<small>{number(figures.tokens_per_second[1])} tokens/s</small>"]
    if figures.ratio:
        middle = figures.ratio[1]
        lines.append(f"<b>{ratio(middle)}</b><small>{ends(figures.ratio)}</small>")
    quality = []
    if agreement(cell) and not is_reference:
        quality.append(f"agreement {agreement(cell)}")
    if cell.accuracy is not None:
        quality.append(f"accuracy {share(cell.accuracy)}")
    lines += [f"<small>{text}</small>" for text in quality]
    return "".join(lines)


def _detail(cell: Cell, figures: Figures) -> list[str]:
    low, middle, high = figures.tokens_per_second
    values = [seconds(figures.p50), seconds(figures.p90), seconds(figures.p99)]
    values.append(number(middle) + (f"<small>{number(low)} to {number(high)}</small>" if math.isfinite(high) else ""))
    if figures.ratio:
        values.append(f"{ratio(figures.ratio[1])}<small>{ends(figures.ratio)}</small>")
    else:
        values.append(NONE)
    values += [_or_none(figures.waste, share), _or_none(figures.limit_share, share), _or_none(cell.peak_bytes, size)]
    values += [agreement(cell) or NONE, _or_none(cell.logit_difference, lambda at: f"{at:.1e}")]
    return [*values, _or_none(cell.accuracy, share), f"{len(cell.seconds):,}"]


def _cells(values: Iterable[str]) -> str:
    return "".join(f"<td>{value}</td>" for value in values)


def _status(cell: Cell | None, subject: Subject) -> str:
    if cell is None:
        return "not run" if subject.status == "ok" else subject.status
    return "not measured" if cell.status == "ok" else cell.status


def _short(texts: int, tokens: int) -> str:
    return f"{texts:,} text{'' if texts == 1 else 's'}, {tokens:,} tokens"


def _or_none(value: float | None, write: Any) -> str:
    return NONE if value is None else str(write(value))


def _forecast_value(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NONE if value is None else _plain(name, value)
    if name in ("seconds", "low", "high") or name.endswith("_seconds"):
        return seconds(value)
    if name in ("error", "efficiency"):
        return share(value)
    if name == "flops":
        return f"{number(value / 1e9)} GFLOP"
    return size(value) if name == "bytes" else number(value)


def _plain(name: str, value: Any) -> str:
    """A value of any type, in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return size(value) if name.endswith("bytes") else f"{value:,}" if isinstance(value, int) else number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {_plain(str(inner), item)}" for inner, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(name, item) for item in value)
    return str(value)
