"""What the server counts under its own names, `nopad_*` ([docs/observability.md] lists them)."""

from __future__ import annotations

from collections import Counter as Tally
from functools import partial
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nopad.model.packages import version_of
from nopad.runtime.drift import CONFIDENCE_BINS, Window, baseline_from_json, place
from nopad.runtime.model import Model
from nopad.runtime.scheduler.events import BatchRun, Dropped, Event, Refused, WorkerDied
from nopad.runtime.server.errors import FAULTS, Kind
from nopad.runtime.server.models import Answered, Models, Served
from nopad.runtime.types import Prediction

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TEXTS = tuple(float(2**k) for k in range(11))
TOKENS = tuple(float(2**k) for k in range(1, 17))
CONFIDENCE = tuple((k + 1) / CONFIDENCE_BINS for k in range(CONFIDENCE_BINS))
M = TypeVar("M", Counter, Histogram)
Mode = Literal["livemax", "livemin", "livesum"]
MOST_LABELS = 500  # a model with more has no label mix: Prometheus keeps a series for each


class OwnMetrics:
    """nopad's counts of one server. `drift_window`: of how many answers drift is measured."""

    def __init__(self, registry: CollectorRegistry, drift_window: int) -> None:
        self._window = drift_window
        self._children: dict[tuple[Any, ...], Any] = {}
        self._classifiers: dict[str, _Classifier] = {}
        # What of an engine's counts is in the counters already.
        self._seen: WeakKeyDictionary[Model, dict[str, tuple[int, int]]] = WeakKeyDictionary()
        self._known: set[tuple[str, ...]] = set()  # label sets of nopad_model_info
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        self._requests = counter("nopad_requests", "Requests to POST routes", ["route", "status", "model"])
        self._request_seconds = histogram(
            "nopad_request_seconds", "From the first byte to the last", ["route", "model"], buckets=SECONDS
        )
        self._errors = counter("nopad_errors", "Requests that were refused, by kind", ["kind"])
        for kind in FAULTS:
            self._errors.labels(kind)
        steps = {
            "tokenization": "Tokenizing a request's texts",
            "queue": "In the queue, of a request's mean text",
            "inference": "In the engine, of a request's mean text",
        }
        self._steps = [
            histogram(f"nopad_{step}_seconds", said, ["model"], buckets=SECONDS) for step, said in steps.items()
        ]
        self._texts = counter("nopad_texts", "Texts that were answered", ["model", "engine", "precision"])
        self._truncated = counter("nopad_texts_truncated", "Texts that were cut", ["model"])
        self._text_tokens = histogram(
            "nopad_text_tokens", "Tokens of a text, as the model read it", ["model"], buckets=TOKENS
        )
        self._labels = counter("nopad_labels", "Labels given", ["model", "label"])
        self._confidence = histogram("nopad_confidence", "Score of the best label", ["model"], buckets=CONFIDENCE)
        self._batch_texts = histogram("nopad_batch_texts", "Texts of a micro-batch", ["model"], buckets=TEXTS)
        self._batch_tokens = histogram("nopad_batch_tokens", "Tokens of a micro-batch", ["model"], buckets=TOKENS)
        self._batch_seconds = histogram(
            "nopad_batch_seconds", "A micro-batch in the engine", ["model"], buckets=SECONDS
        )
        self._saved = counter(
            "nopad_padding_saved_tokens",
            "Tokens that padding each micro-batch to its longest text would add",
            ["model"],
        )
        self._dropped = counter("nopad_texts_dropped", "Texts that were not run, by reason", ["model", "reason"])
        self._deaths = counter("nopad_worker_deaths", "Threads of the scheduler that died", ["model"])
        self._swaps = counter("nopad_swaps", "Changes of models while serving", ["result"])
        self._log_errors = counter("nopad_log_errors", "Lines that could not be written to the log")
        engine = ["model", "engine", "precision"]
        self._engine_batches = counter("nopad_engine_batches", "Micro-batches an engine answered, probes too", engine)
        self._engine_failures = counter("nopad_engine_failures", "Micro-batches an engine failed on", engine)
        self._fallbacks = counter(
            "nopad_fallbacks", "Micro-batches answered by another engine than the chosen", ["model"]
        )
        self._open_gauges(registry)

    def _open_gauges(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, said: str, *labels: str, of: Mode = "livemax") -> Gauge:
            return Gauge(f"nopad_{name}", said, labels, registry=registry, multiprocess_mode=of)  # of several workers

        self._running = gauge("requests_running", "Requests that are being answered", of="livesum")
        self._ready = gauge("ready", "1 while requests are answered", of="livemin")
        self._queue_texts = gauge("queue_texts", "Texts that wait", "model", of="livesum")
        self._queue_tokens = gauge("queue_tokens", "Tokens that wait", "model", of="livesum")
        self._batch_running = gauge("batch_running_seconds", "How long the micro-batch of now has run", "model")
        self._model_ready = gauge("model_ready", "1 while the engine answers", "model", of="livemin")
        self._degraded = gauge("degraded", "1 once another engine than the chosen one has answered", "model")
        self._engine_ready = gauge(
            "engine_ready", "1 for an opened engine", "model", "engine", "precision", of="livemin"
        )
        self._models = gauge("model_info", "1 for a served model", "model", "task", "engine", "precision")
        self._psi = gauge("drift_psi", "Population stability index against the calibration", "model", "of")
        gauge("build_info", "The version of nopad", "version").labels(version_of("nopad")).set(1)

    def _of(self, metric: M, *labels: str) -> M:
        """The metric of these labels: `labels()` of the library takes a lock and ten times as long."""
        child = self._children.get((metric, *labels))
        if child is None:
            child = self._children[metric, *labels] = metric.labels(*labels)
        return child

    def requested(self, route: str, status: int, model: str, seconds: float) -> None:
        """A POST request is over. `route` is a template, `model` "" where none was asked."""
        self._of(self._requests, route, str(status), model).inc()
        self._of(self._request_seconds, route, model).observe(seconds)

    def answered(self, answered: Answered) -> None:
        """A request was answered."""
        name, answers = answered.served.name, answered.answers
        for step, taken in zip(self._steps, (answered.tokenizing, answered.queued, answered.running), strict=True):
            self._of(step, name).observe(taken)
        for by, count in Tally((each.engine, each.precision) for each in answers).items():
            self._of(self._texts, name, *by).inc(count)
        if answered.truncated:
            self._of(self._truncated, name).inc(answered.truncated)
        tokens = self._of(self._text_tokens, name)
        for each in answers:
            tokens.observe(each.tokens_used)
        if isinstance(answers[0], Prediction) and answered.served.model.manifest.head.has_labels:
            self._classified(answered.served, answers)

    def _classified(self, served: Served, answers: list[Prediction]) -> None:
        kept = self._classifiers.get(served.name)
        if kept is None or kept.model is not served.model:  # the first answer, or the first after a swap
            kept = self._classifiers[served.name] = _Classifier(served.model, self._window)
        confidence = self._of(self._confidence, served.name)
        for each in answers:
            confidence.observe(each.score)
        if len(kept.index) <= MOST_LABELS:
            for label, count in Tally(label for each in answers for label in each.labels).items():
                self._of(self._labels, served.name, label).inc(count)
        if kept.window is not None:
            for each in answers:
                kept.window.add(place(each, kept.index))

    def failed(self, kind: Kind) -> None:
        """A request was refused."""
        self._of(self._errors, kind).inc()

    def scheduled(self, model: str, event: Event) -> None:
        """What a model's scheduler reports, from any thread."""
        if isinstance(event, BatchRun):
            self._of(self._batch_texts, model).observe(event.requests)
            self._of(self._batch_tokens, model).observe(event.tokens)
            self._of(self._batch_seconds, model).observe(event.seconds)
            self._of(self._saved, model).inc(event.padding_saved)
        elif isinstance(event, Refused):
            self._of(self._dropped, model, "full").inc(event.requests)
        elif isinstance(event, Dropped):
            self._of(self._dropped, model, event.reason).inc(event.requests)
        elif isinstance(event, WorkerDied):
            self._of(self._deaths, model).inc()

    def swapped(self, result: str) -> None:
        """A model was to be changed."""
        self._swaps.labels(result).inc()

    def log_failed(self) -> None:
        """A line could not be written to the log."""
        self._log_errors.inc()

    def refresh(self, models: Models, running: int, ready: bool) -> None:
        """Set what is a state of now, and count what the engines have done. Not from two threads at once."""
        self._running.set(running)
        self._ready.set(ready)
        known = set()
        for served in tuple(models):
            state, model = served.model.scheduler.state(), served.model
            self._queue_texts.labels(served.name).set(state.requests)
            self._queue_tokens.labels(served.name).set(state.tokens)
            self._batch_running.labels(served.name).set(served.busy)
            self._model_ready.labels(served.name).set(state.ready)
            for reason in ("full", "gone", "deadline"):
                self._dropped.labels(served.name, reason)
            self._deaths.labels(served.name), self._truncated.labels(served.name), self._saved.labels(served.name)
            self._count_engines(served)
            known.add((served.name, model.task, model.status().engine, model.artifact.precision))
            kept = self._classifiers.get(served.name)
            if kept is not None and kept.window is not None and kept.model is model:
                for of, value in (kept.window.psi() or {}).items():
                    self._psi.labels(served.name, of).set(value)
        for labels in self._known - known:
            self._models.labels(*labels).set(0)
        for labels in known:
            self._models.labels(*labels).set(1)
        self._known |= known

    def _count_engines(self, served: Served) -> None:
        status, name = served.model.status(), served.name
        seen = self._seen.setdefault(served.model, {})
        self._degraded.labels(name).set(status.degraded)
        fallbacks = 0
        for each in status.engines:
            labels = (name, each.name, each.precision)
            key = f"{each.name} {each.file}"
            before = seen.get(key, (0, 0))
            batches, failures = max(0, each.batches - before[0]), max(0, each.failures - before[1])
            seen[key] = (each.batches, each.failures)
            self._engine_ready.labels(*labels).set(each.state == "ready")
            self._engine_batches.labels(*labels).inc(batches)
            self._engine_failures.labels(*labels).inc(failures)
            if (each.name, each.file) != (status.engine, served.model.artifact.file):
                fallbacks += batches
        self._fallbacks.labels(name).inc(fallbacks)


class _Classifier:
    """A classifier's labels, and its last answers where its bundle says what to hold them against."""

    def __init__(self, model: Model, window: int) -> None:
        self.model = model
        self.index = {label: number for number, label in enumerate(model.labels)}
        calibration = model.manifest.calibration
        baseline = baseline_from_json(calibration.baseline, len(self.index)) if calibration else None
        self.window = Window(baseline, window) if baseline else None
