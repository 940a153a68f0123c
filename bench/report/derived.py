"""A report as its readers need it: cells by name with their derived figures. Writes nothing itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nopad.bench.report.intervals import Interval, median_interval, percentile, ratio_interval
from nopad.bench.schema import Cell, Report, Subject, Workload


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of one cell, from its times. Seconds are of one pass over the texts; only real tokens count."""

    p50: float
    p90: float
    p99: float
    seconds: Interval  # from 0 to infinity after a single round, which says nothing about the next
    tokens_per_second: Interval
    ratio: Interval | None  # the reference's time over this one's; None for itself, and where the two share no round
    waste: float | None  # share of the computed tokens that are not real
    limit_share: float | None  # of what the machine's best matrix products of the subject's precision allow


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells and figures by (subject, workload). A cell without times has no figures."""

    report: Report
    cells: Mapping[tuple[str, str], Cell]
    figures: Mapping[tuple[str, str], Figures]

    def at(self, subject: str, workload: str) -> tuple[Cell | None, Figures | None]:
        """The cell of `subject` on `workload`, and its figures; None where there are none."""
        return self.cells.get((subject, workload)), self.figures.get((subject, workload))

    def compared(self) -> list[Subject]:
        """The subjects of nopad that can be compared with the reference: the same model."""
        subjects = self.report.subjects
        models = {subject.model for subject in subjects if subject.name == self.report.reference}
        return [subject for subject in subjects if subject.family == "nopad" and subject.model in models]


def tabulate(report: Report) -> Table:
    """The report's cells with their figures."""
    workloads = {workload.name: workload for workload in report.workloads}
    subjects = {subject.name: subject for subject in report.subjects}
    cells = {(cell.subject, cell.workload): cell for cell in report.cells}
    reference = subjects.get(report.reference or "")
    figures = {}
    for name, cell in cells.items():
        subject, workload = subjects.get(cell.subject), workloads.get(cell.workload)
        if subject and workload and cell.status == "ok" and cell.seconds:
            same_model = reference is None or subject.model == reference.model  # the limit is of its products
            limit = workload.limits.get(subject.precision) if same_model else None
            other = cells.get((report.reference or "", cell.workload))
            figures[name] = _figures(cell, workload, other, limit)
    return Table(report=report, cells=cells, figures=figures)


def _figures(cell: Cell, workload: Workload, reference: Cell | None, limit: float | None) -> Figures:
    low, middle, high = seconds = median_interval(cell.seconds, cell.rounds)
    compared = reference is not None and reference is not cell and reference.status == "ok"
    tokens = workload.tokens if cell.tokens is None else cell.tokens
    return Figures(
        p50=percentile(cell.seconds, 50),
        p90=percentile(cell.seconds, 90),
        p99=percentile(cell.seconds, 99),
        seconds=seconds,
        tokens_per_second=(tokens / high, tokens / middle, tokens / low if low else math.inf),
        ratio=ratio_interval(cell, reference) if compared and reference is not None else None,
        waste=1 - tokens / cell.computed_tokens if cell.computed_tokens else None,
        limit_share=tokens / middle / limit if limit else None,
    )
