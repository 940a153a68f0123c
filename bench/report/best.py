"""nopad's best against the best peer: of fp32, nopad is held to the fastest fp32 peer; of any other precision, to the
fastest peer of any. Writes nothing itself.

Only subjects of the reference's model count: tokens per second of another model do not compare with these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nopad.bench.report.derived import Table
from nopad.bench.report.intervals import Interval, ratio_interval, round_medians, unpaired_ratio
from nopad.bench.schema import Subject

_ORDER = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class Duel:
    """nopad's fastest subject of a precision on a workload, and the peer that it is held to."""

    subject: Subject
    peer: Subject | None
    times: Interval | None  # as fast as the peer; None without one


def precisions_of(table: Table) -> list[str]:
    """The precisions in which nopad was measured, fp32 first."""
    measured = {name for name, _ in table.figures}
    found = {subject.precision for subject in _own(table) if subject.name in measured}
    return sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def peers(table: Table) -> list[Subject]:
    """The competitors that were measured."""
    measured = {name for name, _ in table.figures}
    models = {subject.model for subject in table.report.subjects if subject.name == table.report.reference}
    return [
        subject
        for subject in table.report.subjects
        if subject.family != "nopad" and subject.model in models and subject.name in measured
    ]


def fastest_peer(table: Table, workload: str, precision: str | None = None) -> Subject | None:
    """The fastest competitor on a workload, of one precision or of any (None)."""
    return _fastest(table, (peer for peer in peers(table) if precision in (None, peer.precision)), workload)


def duel(table: Table, workload: str, precision: str) -> Duel | None:
    """The fastest of nopad's in this precision on a workload, with its peer; None where nopad has no figure."""
    subject = _fastest(table, (one for one in _own(table) if one.precision == precision), workload)
    if subject is None:
        return None
    peer = fastest_peer(table, workload, precision if precision == "fp32" else None)
    times = None if peer is None else _times(table, subject.name, peer.name, workload)
    return Duel(subject=subject, peer=peer, times=times)


def _own(table: Table) -> list[Subject]:
    """The subjects of nopad; without a reference all of them, which are of one model."""
    return table.compared() or [subject for subject in table.report.subjects if subject.family == "nopad"]


def _fastest(table: Table, subjects: Iterable[Subject], workload: str) -> Subject | None:
    measured = [subject for subject in subjects if (subject.name, workload) in table.figures]
    return max(measured, key=lambda subject: table.figures[subject.name, workload].tokens_per_second[1], default=None)


def _times(table: Table, subject: str, peer: str, workload: str) -> Interval:
    """How many times as fast as the peer: within each round, or by the medians of both where they share no round."""
    mine, theirs = table.cells[subject, workload], table.cells[peer, workload]
    medians = [list(round_medians(cell.seconds, cell.rounds).values()) for cell in (theirs, mine)]
    return ratio_interval(mine, theirs) or unpaired_ratio(*medians)
