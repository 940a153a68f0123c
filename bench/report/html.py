"""The report of `nopad bench` as one HTML file that asks the network for nothing. Knows the page, measures nothing.

Texts, file names and notes come from elsewhere: all are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nopad.bench.report import html_tables
from nopad.bench.report.best import duel, peers, precisions_of
from nopad.bench.report.derived import Table, tabulate
from nopad.bench.report.html_page import Section, document, figure, legend, verdict
from nopad.bench.report.html_plots import Panel, latency, memory, quality, speed, throughput
from nopad.bench.report.markdown import LEGEND, peak_words
from nopad.bench.schema import Report
from nopad.charts.svg import escaped
from nopad.charts.units import number, ratio, share


def write_html(report: Report, path: Path) -> None:
    """Write the page of `report`. Raises `OSError` if the file cannot be written."""
    path.write_text(page(report), encoding="utf-8")


def page(report: Report) -> str:
    """The page of `report`."""
    table = tabulate(report)
    machine = ", ".join(str(report.machine[name]) for name in ("cpu", "gpu") if report.machine.get(name))
    header = [f'<p class="result">{escaped(result(table))}</p>', _verdicts(report), _tiles(table)]
    return document(
        title=f"nopad bench: {machine or report.created}",
        heading=" · ".join(part for part in (report.created, machine, _threads(report)) if part),
        header="\n".join(header),
        sections=_sections(table),
        footer=f"Written by nopad bench, result schema {report.schema_version}. It asks the network for nothing.",
    )


def result(table: Table) -> str:
    """The result of the run, in one sentence."""
    reference, report = table.report.reference, table.report
    parts = []
    for subject in table.compared():
        ratios = [
            figures.ratio
            for workload in report.workloads
            if (figures := table.figures.get((subject.name, workload.name))) is not None and figures.ratio is not None
        ]
        if ratios:
            low, high = (end(middle for _, middle, _ in ratios) for end in (min, max))
            times = ratio(low) if ratio(low) == ratio(high) else f"{ratio(low)} to {ratio(high)}"
            unclear = sum(low <= 1 <= high for low, _, high in ratios)
            doubt = f" (on {unclear} of {len(ratios)} workloads not told apart from it)" if unclear else ""
            parts.append((high, f"{subject.name} {times} as fast{doubt}"))
    if not parts and not report.cells:
        return "Forecasts only: nothing was measured." if report.forecasts else "Nothing was measured."
    if not parts:
        return "This run compares nopad with nothing: " + (
            f"no workload was finished by both nopad and {reference}." if reference else "it has no reference."
        )
    compared = sum(
        any((at := table.figures.get((subject.name, workload.name))) and at.ratio for subject in table.compared())
        for workload in report.workloads
    )
    total = len(report.workloads)
    count = f"{total} workload{'' if total == 1 else 's'}" if compared == total else f"{compared} of {total} workloads"
    speeds = ", ".join(text for _, text in sorted(parts, reverse=True))
    return f"Against {reference} on {count}: {speeds}.{_against_the_best(table)}"


def _against_the_best(table: Table) -> str:
    """How nopad's fastest compare with the fastest peers; nothing where the reference is the only peer."""
    if len(peers(table)) < 2:
        return ""
    parts = []
    for precision in precisions_of(table):
        found = [duel(table, workload.name, precision) for workload in table.report.workloads]
        middles = [one.times[1] for one in found if one is not None and one.times is not None]
        if middles:
            parts.append(f"{precision} {ratio(min(middles))} to {ratio(max(middles))}")
    return f" Against the best peer of each workload: {', '.join(parts)}." if parts else ""


def _verdicts(report: Report) -> str:
    """What to know before believing a figure: loud where the run is incomplete or the machine was noisy."""
    noise, verdicts = report.noise, []
    if not report.complete:
        verdicts.append(verdict("The run was interrupted: what is here is all there is.", loud="Incomplete."))
    words = f"{noise.verdict[:1].upper()}{noise.verdict[1:].rstrip('.')}." if noise.verdict else ""
    if not noise.conclusive:
        why = words or "The machine was too noisy to conclude from these times."
        verdicts.append(verdict(why, loud="Inconclusive."))
    elif words:
        verdicts.append(verdict(words))
    return "".join(verdicts)


def _tiles(table: Table) -> str:
    """How nopad compares, one tile for each workload: its fastest subject large, the others small."""
    tiles = []
    for workload in table.report.workloads if table.report.cells else ():
        compared = [
            (figures.p50, subject.name, figures.ratio)
            for subject in table.compared()
            if (figures := table.figures.get((subject.name, workload.name))) is not None and figures.ratio is not None
        ]
        lines = [f'<div class="of">{escaped(workload.name)}</div>']
        for n, (_, name, times) in enumerate(sorted(compared)):
            middle, ends = ratio(times[1]), f"<small>{html_tables.ends(times)}</small>"
            if n == 0:
                lines.append(f'<div class="times">{middle}</div><div class="by">{escaped(name)} {ends}</div>')
            else:
                lines.append(f'<div class="by">{escaped(name)} {middle} {ends}</div>')
        if not compared:
            lines.append('<div class="times none">not compared</div>')
        tiles.append(f"<li>{''.join(lines)}</li>")
    doubtful = "" if table.report.noise.conclusive else " doubtful"
    return f'<ul class="tiles{doubtful}" aria-label="nopad, times the reference">{"".join(tiles)}</ul>' if tiles else ""


def _sections(table: Table) -> list[Section]:
    """Every section that has something to say, in reading order."""
    report, sections = table.report, []
    if report.cells:
        plots = (
            ("latency", "Latency against length", latency(table), "Medians with their 95 % intervals."),
            ("throughput", "Throughput against batch", throughput(table), "Real tokens only: padding earns nothing."),
            ("speed", "Throughput by workload", speed(table), _speed_remark(table)),
            ("memory", "Peak memory", memory(table), "Resident memory of a fresh process that ran one workload."),
            ("quality", "Speed and accuracy", quality(table), "A fast answer counts if it is the same answer."),
        )
        sections.append(("summary", "Summary", html_tables.summary(table)))
        if best := html_tables.best(table):
            sections.append(("best", "nopad's best against the best peer", best))
        sections += [(name, title, _panels(table, panels, remark)) for name, title, panels, remark in plots if panels]
        sections.append(("details", "All figures", html_tables.details(table)))
    if report.subjects:
        sections.append(("subjects", "Subjects", html_tables.subjects(table)))
    if remarks := html_tables.remarks(table):
        sections.append(("remarks", "Not measured, and remarks", remarks))
    if report.forecasts:
        sections.append(("forecasts", "Forecasts, not measurements", html_tables.forecasts(report.forecasts)))
    about = (
        ("Machine", {**report.machine, "threads": report.threads}),
        ("Versions", report.versions),
        ("Model", report.model),
        ("Settings", report.settings),
    )
    listed = "".join(html_tables.pairs(caption, values) for caption, values in about if values)
    sections.append(("machine", "Machine, versions, model", f'<div class="columns">{listed}</div>'))
    command = f"<pre><code>{escaped(report.command)}</code></pre>"
    sections.append(("reproduce", "Reproduce", f"{command}<h3>How it was measured</h3>{_how(report)}"))
    return sections


def _panels(table: Table, panels: Sequence[Panel], remark: str) -> str:
    figures = "".join(figure(panel.title, panel.remark, panel.svg) for panel in panels)
    wide = "" if panels[0].small else " wide"
    names = legend([subject.name for subject in table.report.subjects])
    return f'<p class="about">{escaped(remark)}</p>{names}<div class="panels{wide}">{figures}</div>'


def _speed_remark(table: Table) -> str:
    reference = table.report.reference
    return (f"× is times {reference}. " if reference else "") + (
        "Whiskers are 95 % intervals. The dashed line is what the machine's fp32 matrix products allow; other "
        "precisions may pass it."
    )


def _how(report: Report) -> str:
    noise = report.noise
    parts = [
        " ".join(LEGEND),
        f"Every subject was given {_threads(report)}, and its library asked whether it has them.",
    ]
    if noise.probe_seconds:
        probe = (
            f"To tell how quiet the machine was, a fixed matrix product was timed {len(noise.probe_seconds):,} times"
        )
        probe += f"; its best was {number(noise.peak_flops / 1e9)} GFLOP/s" if noise.peak_flops else ""
        if noise.spread is not None:
            probe += f", its interquartile range {share(noise.spread)} of its median"
        parts.append(f"{probe}.")
    if report.peaks:
        parts.append(f"The fastest matrix products of each precision, which give the limits: {peak_words(report)}.")
    return "".join(f"<p>{escaped(text)}</p>" for text in parts)


def _threads(report: Report) -> str:
    return f"{report.threads} thread{'' if report.threads == 1 else 's'}"
