"""The report as Markdown: a table for each workload and for the subjects, and what to know before believing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nopad.bench.report.best import duel, peers, precisions_of
from nopad.bench.report.derived import Figures, Table, tabulate
from nopad.bench.report.intervals import Interval, wide
from nopad.bench.schema import Cell, Report, Subject, Workload
from nopad.charts.units import number, ratio, seconds, share, size

NOTHING = "-"
_CELLS = ("subject", "p50", "p90", "p99", "real tokens/s (95 %)", "padding", "times {reference} (95 %)", "of the limit",
          "peak memory", "agreement", "logits", "accuracy")  # fmt: skip
_FORECASTS = ("gpu", "workload", "subject", "precision")
_SUBJECTS = ("subject", "library", "precision", "threads", "import", "load", "first call", "loaded", "file", "build")
BEST = ("workload", "precision", "nopad", "real tokens/s", "best peer", "real tokens/s", "times (95 %)")
BEST_LEGEND = "fp32 is held to the fastest fp32 peer of the row, any other precision to the fastest peer of any."
LEGEND = (
    "Times are of whole calls, tokenization included, on the same strings for everyone, in turns within one process.",
    "Intervals are 95 % bootstrap intervals over rounds; * marks one too wide (over 10 %) to conclude from.",
    "Padding: share of computed tokens that are not real. Agreement, logits: equal labels with the reference, and the",
    "largest logit difference (of BERT: to BERT in transformers; of embeddings: the smallest cosine, and the largest",
    "difference of elements). Peak memory, import, load and first call are of a fresh process. Limit: the matrix",
    "products of the real tokens, at the best speed that a plain one of the subject's precision reached here in any",
    "library.",
)


def to_markdown(report: Report) -> str:
    """The whole report. Tables have a row for every subject, also for those that could not be measured."""
    table = tabulate(report)
    parts = (
        _head(report),
        _best(table),
        _measured(table),
        _subjects(report),
        _forecasts(report),
        _left_out(report),
        _legend(report),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def best_rows(table: Table) -> list[list[str]]:
    """Rows of `BEST`, one for each workload and precision of nopad: its fastest against the best peer."""
    rows = []
    for workload in table.report.workloads if peers(table) else ():
        for precision in precisions_of(table):
            found = duel(table, workload.name, precision)
            if found is not None:
                row = [workload.name, precision]
                for subject in (found.subject, found.peer):
                    speed = subject and number(table.figures[subject.name, workload.name].tokens_per_second[1])
                    row += [subject.name if subject else "none", speed or NOTHING]
                rows.append([*row, _between(found.times, ratio)])
    return rows


def _head(report: Report) -> Iterator[str]:
    machine = report.machine
    yield "# nopad bench"
    yield ""
    yield f"`{report.command}`"
    yield ""
    where = [machine.get("cpu"), machine.get("isa"), machine.get("gpu")]
    model = report.model.get("name")
    yield ", ".join(
        str(part)
        for part in (
            report.created,
            *([f"model {model}"] if model else []),
            f"{report.threads} thread{'' if report.threads == 1 else 's'} of {machine.get('cores')} cores",
            *(part for part in where if part),
        )
    )
    yield ""
    if not report.complete:
        yield "**Interrupted: what is here is all there is.**"
        yield ""
    if report.noise.verdict:
        yield f"Noise: {report.noise.verdict}."
        yield ""
    if report.peaks:
        yield f"Fastest matrix products here: {peak_words(report)}."
        yield ""
    if report.reference is None and report.cells:
        yield "No reference was measured: speeds stand alone, and answers are compared among nopad's own engines."
        yield ""


def peak_words(report: Report) -> str:
    """The peaks of the machine, in words."""
    return ", ".join(f"{peak.precision} {number(peak.flops / 1e9)} GFLOP/s ({peak.library})" for peak in report.peaks)


def _best(table: Table) -> Iterator[str]:
    rows = best_rows(table)
    if rows:
        yield "## nopad's best against the best peer"
        yield ""
        yield from _rows(BEST, rows)
        yield ""
        yield BEST_LEGEND
        yield ""


def _measured(table: Table) -> Iterator[str]:
    report = table.report
    subjects = {subject.name: subject for subject in report.subjects}
    for workload in report.workloads:
        yield f"## {workload.name}"
        yield ""
        yield _about(workload)
        yield ""
        cells = [table.cells[key] for key in table.cells if key[1] == workload.name]
        if cells:
            yield from _rows([name.format(reference=report.reference or "reference") for name in _CELLS], [
                _cell_row(subjects[cell.subject], cell, table.figures.get((cell.subject, workload.name)), report)
                for cell in cells
            ])  # fmt: skip
            yield ""


def _about(workload: Workload) -> str:
    calls = "one call" if workload.batch >= workload.texts else f"calls of {workload.batch}"
    texts = f"{workload.texts} text{'' if workload.texts == 1 else 's'} in {calls}"
    about = f"{texts}, {workload.tokens:,} tokens, the longest {workload.longest:,}"
    padding = 1 - workload.tokens / workload.padded_tokens
    limits = ", ".join(f"{number(at)} tokens/s {precision}" for precision, at in workload.limits.items())
    return f"{about} ({workload.padded_tokens:,} padded, {share(padding)} waste); {workload.source}." + (
        f" Limit of the measured matrix products: {limits}." if limits else ""
    )


def _cell_row(subject: Subject, cell: Cell, figures: Figures | None, report: Report) -> list[str]:
    peak = NOTHING if cell.peak_bytes is None else size(cell.peak_bytes)
    if figures is None:
        return [
            cell.subject,
            f"**{cell.status}**" if cell.status != "ok" else NOTHING,
            *[NOTHING] * 6,
            peak,
            *[NOTHING] * 3,
        ]
    # Of very few times the 99th percentile is about the longest; it is shown all the same.
    return [
        cell.subject,
        seconds(figures.p50),
        seconds(figures.p90),
        seconds(figures.p99),
        _between(figures.tokens_per_second, number),
        share(figures.waste) if figures.waste is not None else NOTHING,
        "reference" if subject.name == report.reference else _between(figures.ratio, ratio),
        share(figures.limit_share) if figures.limit_share is not None else NOTHING,
        peak,
        agreement(cell) or NOTHING,
        f"{cell.logit_difference:.1e}" if cell.logit_difference is not None else NOTHING,
        share(cell.accuracy) if cell.accuracy is not None else NOTHING,
    ]


def agreement(cell: Cell) -> str:
    """How alike a cell's answers and the reference's are: equal labels, or of embeddings the smallest cosine."""
    if cell.cosine is not None:
        return f"cosine {cell.cosine:.6f}"
    return "" if cell.agreement is None else share(cell.agreement)


def _between(interval: Interval | None, form: Callable[[float], str]) -> str:
    if interval is None:
        return NOTHING
    low, middle, high = interval
    if high == float("inf"):
        return f"{form(middle)} (one round)"
    return f"{form(middle)} ({form(low)} to {form(high)}){' *' if wide(interval) else ''}"


def _subjects(report: Report) -> Iterator[str]:
    if not report.subjects:
        return
    yield "## Subjects"
    yield ""

    def time(value: float | None) -> str:
        return NOTHING if value is None else seconds(value)

    def memory(value: int | None) -> str:
        return NOTHING if value is None else size(value)

    yield from _rows(_SUBJECTS, [
        [subject.name, subject.version or NOTHING, subject.precision, str(subject.threads),
         time(subject.import_seconds), time(subject.load_seconds), time(subject.cold_seconds),
         memory(subject.loaded_bytes), memory(subject.file_bytes), time(subject.build_seconds)]
        for subject in report.subjects
    ])  # fmt: skip
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"Installed: {versions}."
    yield ""


def _forecasts(report: Report) -> Iterator[str]:
    """A section of its own: forecasts never stand among measurements."""
    if not report.forecasts:
        return
    yield "## Forecasts, not measurements"
    yield ""
    rows = [
        [*(str(row.get(name, NOTHING)) for name in _FORECASTS[:4]), *_expected(row), str(row.get("bound", NOTHING))]
        for row in report.forecasts
    ]
    yield from _rows([*_FORECASTS[:4], "time (low to high)", "real tokens/s", "bound by"], rows)
    yield ""
    for note in dict.fromkeys(str(row["assumes"]) for row in report.forecasts if row.get("assumes")):
        yield f"- {note}"
    yield ""


def _expected(forecast: Mapping[str, Any]) -> list[str]:
    times = [forecast.get(name) for name in ("seconds", "low", "high")]
    middle, low, high = (seconds(value) if isinstance(value, int | float) else NOTHING for value in times)
    tokens = forecast.get("tokens_per_second")
    return [f"{middle} ({low} to {high})", number(tokens) if isinstance(tokens, int | float) else NOTHING]


def _left_out(report: Report) -> Iterator[str]:
    notes = [
        f"- {subject.name}: {subject.status}. {subject.note}"
        for subject in report.subjects
        if subject.status != "ok" and subject.note
    ]
    notes += [f"- {cell.subject} on {cell.workload}: {cell.status}. {cell.note}" for cell in report.cells if cell.note]
    if notes:
        yield "## Not measured, and remarks"
        yield ""
        yield from notes
        yield ""


def _legend(report: Report) -> Iterator[str]:
    if not report.cells:
        return
    yield from LEGEND


def _rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
