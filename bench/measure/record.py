"""A run as it grows: subjects, workloads and cells by name, and the `Report` they make at any moment."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from nopad.bench.measure import machine
from nopad.bench.measure.probe import Probe, judge
from nopad.bench.report.derived import tabulate
from nopad.bench.schema import Cell, Noise, Report, Status, Subject, Workload

NOT_REACHED = "not reached"


class Record:
    """The results of a run so far."""

    def __init__(
        self,
        *,
        command: str,
        threads: int,
        reference: str | None,
        model: Mapping[str, Any],
        settings: Mapping[str, Any],
        workloads: Sequence[Workload],
        subjects: Sequence[Subject],
    ) -> None:
        self._about: dict[str, Any] = {"command": command, "model": dict(model), "settings": dict(settings)}
        self._created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._machine, self._versions = machine.describe(), machine.versions()
        self.threads = threads
        self.reference = reference
        self.workloads = {workload.name: workload for workload in workloads}
        self.subjects = {subject.name: subject for subject in subjects}
        self.cells = {
            (subject, workload): Cell(subject=subject, workload=workload, status="not run", note=NOT_REACHED)
            for workload in self.workloads
            for subject in self.subjects
        }
        self.probe: Probe | None = None
        self.forecasts: tuple[Mapping[str, Any], ...] = ()
        self.complete = False

    def subject(self, name: str, **changes: Any) -> None:
        """Replace fields of a subject; if it cannot take part, its cells go."""
        self.subjects[name] = dataclasses.replace(self.subjects[name], **changes)
        if self.subjects[name].status in ("missing", "failed"):
            for key in [key for key in self.cells if key[0] == name]:
                del self.cells[key]

    def cell(self, subject: str, workload: str, status: Status, note: str = "", **changes: Any) -> None:
        """Replace the status and fields of a cell."""
        key = (subject, workload)
        self.cells[key] = dataclasses.replace(self.cells[key], status=status, note=note, **changes)

    def report(self) -> Report:
        """Everything so far. Cells keep their times only where their answers were checked (status ok)."""
        probe = self.probe
        peaks = probe.peaks if probe else ()
        workloads = tuple(
            dataclasses.replace(
                workload,
                limits={peak.precision: workload.tokens * peak.flops / workload.flops for peak in peaks},
            )
            if workload.flops
            else workload
            for workload in self.workloads.values()
        )
        report = Report(
            created=self._created,
            complete=self.complete,
            threads=self.threads,
            reference=self.reference,
            machine=self._machine,
            versions=self._versions,
            noise=Noise(),
            subjects=tuple(self.subjects.values()),
            workloads=workloads,
            cells=tuple(self.cells.values()),
            peaks=peaks,
            forecasts=self.forecasts,
            **self._about,
        )
        if probe is None:
            return report
        figures = tabulate(report).figures.values()
        return dataclasses.replace(report, noise=judge(probe.seconds, probe.peak_flops, figures))
