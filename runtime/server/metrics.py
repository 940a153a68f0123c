"""What the server counts, for Prometheus: under its own names, TEI's, or both; of one process or of several.

Several worker processes share counts where `PROMETHEUS_MULTIPROC_DIR` names a folder before prometheus_client is first
imported: each writes its own files there, and `/metrics` of any of them answers for all.
"""

from __future__ import annotations

import os
import re
import threading

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from nopad.runtime.scheduler.events import BatchRun, Event
from nopad.runtime.server.errors import Kind
from nopad.runtime.server.models import Answered, Models
from nopad.runtime.server.own_metrics import OwnMetrics
from nopad.runtime.server.settings import METRICS_FOLDER, MetricsNames
from nopad.runtime.server.tei_metrics import TOTAL, TeiMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# When each series was created: the library says so, and nobody asks.
UNWANTED = re.compile(rb"^(?:# (?:HELP|TYPE) )?\w+_created\b.*\n", re.MULTILINE)


class Metrics:
    """The counts of one server. `drift_window`: of how many answers drift is measured."""

    def __init__(self, names: MetricsNames = "both", drift_window: int = 2_000) -> None:
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._tei = TeiMetrics(self._registry) if names != "nopad" else None
        self._own = OwnMetrics(self._registry, drift_window) if names != "tei" else None
        self.shared = METRICS_FOLDER in os.environ  # with other processes
        if not self.shared:
            ProcessCollector(registry=self._registry)

    def asked(self, task: str, texts: int) -> None:
        """Texts are about to be answered."""
        if self._tei:
            self._tei.asked(task, texts)

    def answered(self, answered: Answered, batch: bool, seconds: float) -> None:
        """A request was answered, in `seconds` from its first byte to its last."""
        if self._tei:
            self._tei.answered(answered, batch, seconds)
        if self._own:
            self._own.answered(answered)

    def failed(self, kind: Kind, batch: bool) -> None:
        """A request was refused."""
        if self._tei:
            self._tei.failed(kind, batch)
        if self._own:
            self._own.failed(kind)

    def requested(self, route: str, status: int, model: str, seconds: float) -> None:
        """A POST request is over. `route` is a template, `model` "" where none was asked."""
        if self._own:
            self._own.requested(route, status, model, seconds)

    def scheduled(self, model: str, event: Event) -> None:
        """What a model's scheduler reports, from any thread."""
        if self._tei and isinstance(event, BatchRun):
            self._tei.ran(event)
        if self._own:
            self._own.scheduled(model, event)

    def swapped(self, result: str) -> None:
        """A model was to be changed while the server runs; `result` in one word."""
        if self._own:
            self._own.swapped(result)

    def log_failed(self) -> None:
        """A line could not be written to the log; from any thread."""
        if self._own:
            self._own.log_failed()

    def refresh(self, models: Models, running: int, ready: bool) -> None:
        """Set what is a state of now: before each scrape, and now and then for the scrapes of other processes."""
        with self._lock:
            if self._tei:
                self._tei.refresh(models)
            if self._own:
                self._own.refresh(models, running, ready)

    def text(self) -> bytes:
        """Everything in Prometheus' text format, of all processes that share a folder."""
        registry = self._registry
        if self.shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return TOTAL.sub(rb"\1", UNWANTED.sub(b"", generate_latest(registry)))
