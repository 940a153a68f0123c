"""Two reports of the same work: what became slower, what faster, and what cannot be told. Measures nothing.

A cell is judged by the interval of the ratio of its medians, new over old. The machine itself may have been slower in
one of the runs, which no interval within a run can show: so the ratio is judged twice, as it is and divided by the
ratio of the two runs' fixed matrix products, and a verdict needs both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nopad.bench.report.intervals import Interval, round_medians, unpaired_ratio
from nopad.bench.schema import Cell, Report, Workload
from nopad.runtime.errors import UsageError

Verdict = Literal["regression", "improvement", "no change", "too noisy", "not compared"]
_SAME_MACHINE = ("cpu", "cores", "isa", "gpu")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One subject on one workload in both reports."""

    subject: str
    workload: str
    verdict: Verdict
    ratio: Interval | None = None  # seconds, new over old
    note: str = ""


def compare(old: Report, new: Report, *, threshold: float, allow_different_machine: bool = False) -> list[Comparison]:
    """Judge every cell that either report has. Raises `UsageError` for reports that cannot be compared."""
    if not 0 < threshold < 1:
        raise UsageError(f"--threshold {threshold} is not a share between 0 and 1, as 0.05 is")
    _require_alike(old, new, allow_different_machine)
    before = {(cell.subject, cell.workload): cell for cell in old.cells}
    after = {(cell.subject, cell.workload): cell for cell in new.cells}
    drift = machine_drift(old, new)
    return [
        _judge(key, before.get(key), after.get(key), drift, threshold)
        for key in dict.fromkeys([*before, *after])
        if _measured(before.get(key)) or _measured(after.get(key))
    ]


def machine_drift(old: Report, new: Report) -> float:
    """How much longer the fixed matrix product took in the new run; 1 where a report has none."""
    times = [report.noise.probe_seconds for report in (old, new)]
    return float(np.median(times[1]) / np.median(times[0])) if all(times) else 1.0


def verdict_of(ratio: Interval, threshold: float) -> Verdict:
    """The verdict of an interval of new over old: beyond the threshold and surely so, surely within it, or neither."""
    low, middle, high = ratio
    most = 1 + threshold
    if low > 1 and middle > most:
        return "regression"
    if high < 1 and middle < 1 / most:
        return "improvement"
    if low >= 1 / most and high <= most:
        return "no change"
    return "too noisy"


def _judge(key: tuple[str, str], old: Cell | None, new: Cell | None, drift: float, threshold: float) -> Comparison:
    subject, workload = key
    if old is None or new is None or not (_measured(old) and _measured(new)):
        states = [
            f"{'absent' if cell is None else cell.status} {when}" for cell, when in ((old, "before"), (new, "now"))
        ]
        lost = old is not None and _measured(old) and new is not None and new.status in ("failed", "out of memory")
        verdict: Verdict = "regression" if lost else "not compared"
        return Comparison(subject=subject, workload=workload, verdict=verdict, note=", ".join(states))
    ratio = unpaired_ratio(_medians(new), _medians(old))
    adjusted: Interval = (ratio[0] / drift, ratio[1] / drift, ratio[2] / drift)
    plain, relative = verdict_of(ratio, threshold), verdict_of(adjusted, threshold)
    if plain == relative:
        return Comparison(subject=subject, workload=workload, verdict=plain, ratio=ratio)
    note = f"{plain} as it is, {relative} if the machine's own change ({drift:.3f}x) is taken out"
    return Comparison(subject=subject, workload=workload, verdict="too noisy", ratio=ratio, note=note)


def _medians(cell: Cell) -> Sequence[float]:
    return list(round_medians(cell.seconds, cell.rounds).values())


def _measured(cell: Cell | None) -> bool:
    return cell is not None and cell.status == "ok" and bool(cell.seconds)


def _require_alike(old: Report, new: Report, allow_different_machine: bool) -> None:
    if old.threads != new.threads:
        raise UsageError(f"the reports are of {old.threads} and {new.threads} threads: measure both with the same")
    other = [name for name in _SAME_MACHINE if old.machine.get(name) != new.machine.get(name)]
    if other and not allow_different_machine:
        differences = "; ".join(f"{name}: {old.machine.get(name)} and {new.machine.get(name)}" for name in other)
        raise UsageError(
            f"the reports are of two machines ({differences}); --allow-different-machine compares them all the same"
        )
    before = {workload.name: workload for workload in old.workloads}
    shared = [workload for workload in new.workloads if workload.name in before]
    if not shared:
        raise UsageError(
            f"the reports share no workload: {', '.join(before) or 'none'}, and "
            f"{', '.join(workload.name for workload in new.workloads) or 'none'}"
        )
    for workload in shared:
        other_texts = before[workload.name]
        if _texts(workload) != _texts(other_texts):
            raise UsageError(
                f"workload {workload.name} has other texts in the two reports ({other_texts.tokens:,} tokens of "
                f"{other_texts.source}, and {workload.tokens:,} of {workload.source}): measure both on the same"
            )


def _texts(workload: Workload) -> tuple[object, ...]:
    return workload.texts, workload.batch, workload.tokens, workload.longest, workload.sha256


def worst(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The regression with the largest ratio; None where there is none."""
    regressions = [comparison for comparison in comparisons if comparison.verdict == "regression"]
    return max(regressions, key=lambda comparison: comparison.ratio[1] if comparison.ratio else math.inf, default=None)
