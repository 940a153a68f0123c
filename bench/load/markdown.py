"""The result of a load run as Markdown: goodputs, then every load of every server."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from nopad.bench.load.figures import Level, goodput, levels, most_answered, times_as_much
from nopad.bench.load.schema import LoadReport
from nopad.bench.report.intervals import Interval
from nopad.charts.units import number, ratio, seconds, share

NOTHING = "–"
SUMMARY = ("server", "goodput, requests/s", "times the others'", "most answered, requests/s", "asked by")
COLUMNS = (
    "load", "answered/s", "texts/s", "tokens/s", "p50", "p90", "p99", "p99.9", "good/s", "carried", "errors",
)  # fmt: skip
HOW = (
    "Requests are sent at times that were planned before, whatever became of those sent earlier; a latency counts from "
    "the planned time, so a server that stalls delays every request that was due meanwhile. Percentiles are of right "
    "answers, medians of the rounds; (low to high) are 95 % intervals over the rounds.",
    "Goodput: right answers within the target per second, at the highest load of which at least 99 % were that; what "
    "is refused, fails or is wrong counts as late. Carried: in how many rounds that was so.",
    "p99.9 needs 1,000 answers in a step. A closed loop's latency is from the sending: callers who wait for their "
    "answers ask a slow server less.",
)


def to_markdown(report: LoadReport) -> str:
    """The whole report."""
    return "\n".join(_lines(report)) + "\n"


def result(report: LoadReport) -> str:
    """The result of the run, in one sentence."""
    if report.target_p99 is None:
        parts = [f"{at.name} {number(most_answered(report, at.name))}" for at in report.endpoints]
        return f"Most right answers per second: {', '.join(parts)}."
    found = [(at.name, best) for at in report.endpoints if (best := goodput(report, at.name)) is not None]
    if not found:
        return "No load was measured against the target."
    words = ", ".join(f"{name} {number(best[1])}" for name, best in found)
    text = f"Requests per second answered with p99 within {seconds(report.target_p99)}: {words}."
    first, *others = found
    if others:
        name, best = max(others, key=lambda other: other[1][1])
        if (times := times_as_much(report, first[0], name)) is not None:
            text += f" {first[0]} carries {ratio(times[1])} of the best other, {name}."
    return text


def summary_rows(report: LoadReport) -> list[list[str]]:
    """A row for each server, in the columns of `SUMMARY`."""
    rows = []
    for endpoint in report.endpoints:
        others = [
            f"{ratio(times[1])}{ends(times, '.2f')} {other.name}"
            for other in report.endpoints
            if other is not endpoint and (times := times_as_much(report, endpoint.name, other.name)) is not None
        ]
        best = goodput(report, endpoint.name)
        rows.append(
            [
                endpoint.name,
                NOTHING if best is None else f"{number(best[1])}{ends(best)}",
                "; ".join(others) or NOTHING,
                number(most_answered(report, endpoint.name)),
                endpoint.protocol,
            ]
        )
    return rows


def level_row(level: Level) -> list[str]:
    """A load of one server, in the columns of `COLUMNS`."""

    def time(value: Interval | None) -> str:
        return NOTHING if value is None else seconds(value[1])

    def rate(value: Interval | None) -> str:
        return NOTHING if value is None else number(value[1])

    p99 = time(level.p99) if level.p99 is None or not math.isfinite(level.p99[2]) else (
        f"{seconds(level.p99[1])} ({seconds(level.p99[0])} to {seconds(level.p99[2])})"
    )  # fmt: skip
    unit = "requests/s" if level.mode == "open" else "callers"
    judged = level.mode == "open" and level.good is not None
    return [
        f"{level.load:g} {unit}", rate(level.answered), rate(level.texts), rate(level.tokens), time(level.p50),
        time(level.p90), p99, time(level.p999), rate(level.good),
        f"{level.passed}/{len(level.steps)}" if judged else NOTHING, errors(level.errors),
    ]  # fmt: skip


def errors(counts: Mapping[str, int]) -> str:
    """Errors by kind, the most frequent first."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items(), key=lambda one: -one[1])) or "0"


def ends(interval: Interval, form: str = "") -> str:
    """The ends of an interval in brackets; nothing after a single round."""
    low, _, high = interval
    if not math.isfinite(high):
        return ""
    return f" ({low:{form}} to {high:{form}})" if form else f" ({number(low)} to {number(high)})"


def remarks(report: LoadReport) -> list[str]:
    """What to know before believing a figure."""
    found = [] if report.complete else ["The run was interrupted: what is here is all there is."]
    for endpoint in report.endpoints:
        bad = [step for step in report.steps if step.endpoint == endpoint.name and not step.valid]
        if bad:
            loads = ", ".join(f"{step.load:g} (round {step.round + 1}: {step.note})" for step in bad)
            found.append(f"{endpoint.name}: not counted, since the client was the bottleneck: {loads}")
        if not most_answered(report, endpoint.name):
            found.append(f"{endpoint.name}: no right answer came in during any step")
        if endpoint.note:
            found.append(f"{endpoint.name}: {endpoint.note}")
    lag = max((step.lag_p99 for step in report.steps), default=0.0)
    busy = max((step.client_cpu for step in report.steps), default=0.0)
    found.append(
        f"The client sent at most {seconds(lag)} late (p99 of a step) and took at most {share(busy)} of a core."
    )
    return found


def workload_words(report: LoadReport) -> str:
    """The texts in a sentence."""
    workload, each = report.workload, report.settings.get("texts_per_request", 1)
    text = f"{workload.texts:,} texts of {', '.join(workload.sources)}, each with equal chance; {each} a request"
    if workload.tokens:
        tokens = workload.tokens
        text += f"; tokens of a text: mean {tokens['mean']:.0f}, p50 {tokens['p50']:.0f}, p90 {tokens['p90']:.0f}, "
        text += f"longest {tokens['max']:.0f}"
    return f"{text}."


def _lines(report: LoadReport) -> Iterator[str]:
    yield "# nopad bench --serve"
    yield ""
    yield result(report)
    yield ""
    machine = f"{report.machine.get('cpu')}, {report.machine.get('cores')} cores"
    yield f"{report.created}, {machine}. {workload_words(report)}"
    yield ""
    yield f"    {report.command}"
    yield ""
    yield from _table(SUMMARY, summary_rows(report))
    for endpoint in report.endpoints:
        for mode, title in (("open", "at an offered rate"), ("closed", "with callers who wait")):
            if found := levels(report, endpoint.name, mode):
                yield f"## {endpoint.name}, {title}"
                yield ""
                yield from _table(COLUMNS, [level_row(level) for level in found])
    yield "## Remarks"
    yield ""
    yield from (f"- {text}" for text in (*remarks(report), *HOW))


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""
