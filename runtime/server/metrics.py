"""What the server counts, under the names of text-embeddings-inference, for Prometheus."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nopad.runtime.scheduler.events import BatchRun, Event
from nopad.runtime.server.errors import FAULTS, Kind
from nopad.runtime.server.models import Answered, Models

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DURATIONS = tuple(1.5e-5 * 1.5**k for k in range(35))  # seconds
SIZES = tuple(float(2**k) for k in range(15))  # texts, tokens
STEPS = ("duration", "tokenization_duration", "queue_duration", "inference_duration")
# The library ends counters in _total, and says when each was created; TEI does neither.
UNWANTED = re.compile(rb"^(?:# (?:HELP|TYPE) )?\w+_created\b.*\n", re.MULTILINE)
TOTAL = re.compile(rb"^((?:# (?:HELP|TYPE) )?\w+)_total\b", re.MULTILINE)


class Metrics:
    """The counts of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._count = Counter("te_request_count", "Requests", ["method"], registry=registry)
        self._success = Counter("te_request_success", "Requests that were answered", ["method"], registry=registry)
        self._failure = Counter("te_request_failure", "Requests that were refused", ["err"], registry=registry)
        for method in ("single", "batch"):
            self._count.labels(method), self._success.labels(method)
        for err in {row.metric for row in FAULTS.values()} - {None}:
            self._failure.labels(err)
        self._texts = {
            kind: (
                Counter(f"te_{kind}_count", "Texts", registry=registry),
                Counter(f"te_{kind}_success", "Texts that were answered", registry=registry),
            )
            for kind in ("embed", "predict")
        }
        self._durations = {
            kind: {
                step: Histogram(f"te_{kind}_{step}", "Seconds", buckets=DURATIONS, registry=registry) for step in STEPS
            }
            for kind in ("request", "embed", "predict")
        }
        self._queue = Gauge("te_queue_size", "Texts that wait", registry=registry)
        self._batch_size = Histogram("te_batch_next_size", "Texts of a micro-batch", buckets=SIZES, registry=registry)
        self._batch_tokens = Histogram(
            "te_batch_next_tokens", "Tokens of a micro-batch", buckets=SIZES, registry=registry
        )
        self._lengths = Histogram("te_request_input_length", "Tokens of a text", buckets=SIZES, registry=registry)
        self._truncated = Counter("nopad_truncated_count", "Texts that were cut", registry=registry)
        self._running = Gauge("nopad_requests_running", "Requests that are being answered", registry=registry)
        self.swaps = Counter("nopad_model_changes_count", "Changes of models", ["result"], registry=registry)
        self._models = Gauge(
            "nopad_model_info", "Served models", ["model", "task", "engine", "precision"], registry=registry
        )

    def asked(self, task: str, texts: int) -> None:
        """Texts are about to be answered."""
        self._texts[_kind(task)][0].inc(texts)

    def answered(self, answered: Answered, batch: bool, seconds: float) -> None:
        """A request was answered, in `seconds` from its first byte to its last."""
        method, kind = "batch" if batch else "single", _kind(answered.served.model.task)
        self._count.labels(method).inc()
        self._success.labels(method).inc()
        self._texts[kind][1].inc(len(answered.answers))
        self._truncated.inc(answered.truncated)
        steps = (answered.tokenizing, answered.queued, answered.running)
        for family, whole in (("request", seconds), (kind, answered.seconds)):
            for step, taken in zip(STEPS, (whole, *steps), strict=True):
                self._durations[family][step].observe(taken)
        for answer in answered.answers:
            self._lengths.observe(answer.tokens_used)

    def scheduled(self, event: Event) -> None:
        """What a model's scheduler reports, from any thread."""
        if isinstance(event, BatchRun):
            self._batch_size.observe(event.requests)
            self._batch_tokens.observe(event.tokens)

    def failed(self, kind: Kind, batch: bool) -> None:
        """A request was refused."""
        err = FAULTS[kind].metric
        if err is not None:
            self._count.labels("batch" if batch else "single").inc()
            self._failure.labels(err).inc()

    def text(self, models: Models, running: int) -> bytes:
        """Everything in Prometheus' text format."""
        self._running.set(running)
        self._queue.set(sum(served.waiting for served in models))
        self._models.clear()
        for served in models:
            model = served.model
            self._models.labels(served.name, model.task, model.status().engine, model.artifact.precision).set(1)
        return TOTAL.sub(rb"\1", UNWANTED.sub(b"", generate_latest(self._registry)))


def _kind(task: str) -> str:
    return "embed" if task == "embeddings" else "predict"
