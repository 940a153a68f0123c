"""What the server counts under the names of text-embeddings-inference, so that its dashboards work."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nopad.model.head import BARE
from nopad.runtime.scheduler.events import BatchRun
from nopad.runtime.server.errors import FAULTS, Kind
from nopad.runtime.server.models import Answered, Models

DURATIONS = tuple(1.5e-5 * 1.5**k for k in range(35))  # seconds
SIZES = tuple(float(2**k) for k in range(15))  # texts, tokens
STEPS = ("duration", "tokenization_duration", "queue_duration", "inference_duration")
# The library ends counters in _total; TEI does not.
TOTAL = re.compile(rb"^((?:# (?:HELP|TYPE) )?te_\w+)_total\b", re.MULTILINE)


class TeiMetrics:
    """TEI's counts of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
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
        self._queue = Gauge("te_queue_size", "Texts that wait", registry=registry, multiprocess_mode="livesum")
        self._batch_size = Histogram("te_batch_next_size", "Texts of a micro-batch", buckets=SIZES, registry=registry)
        self._batch_tokens = Histogram(
            "te_batch_next_tokens", "Tokens of a micro-batch", buckets=SIZES, registry=registry
        )
        self._lengths = Histogram("te_request_input_length", "Tokens of a text", buckets=SIZES, registry=registry)

    def asked(self, task: str, texts: int) -> None:
        """Texts are about to be answered."""
        self._texts[_kind(task)][0].inc(texts)

    def answered(self, answered: Answered, batch: bool, seconds: float) -> None:
        """A request was answered, in `seconds` from its first byte to its last."""
        method, kind = "batch" if batch else "single", _kind(answered.served.model.task)
        self._count.labels(method).inc()
        self._success.labels(method).inc()
        self._texts[kind][1].inc(len(answered.answers))
        steps = (answered.tokenizing, answered.queued, answered.running)
        for family, whole in (("request", seconds), (kind, answered.seconds)):
            for step, taken in zip(STEPS, (whole, *steps), strict=True):
                self._durations[family][step].observe(taken)
        for answer in answered.answers:
            self._lengths.observe(answer.tokens_used)

    def ran(self, batch: BatchRun) -> None:
        """A micro-batch was run."""
        self._batch_size.observe(batch.requests)
        self._batch_tokens.observe(batch.tokens)

    def failed(self, kind: Kind, batch: bool) -> None:
        """A request was refused."""
        err = FAULTS[kind].metric
        if err is not None:
            self._count.labels("batch" if batch else "single").inc()
            self._failure.labels(err).inc()

    def refresh(self, models: Models) -> None:
        """Set what is a state of now."""
        self._queue.set(sum(served.waiting for served in models))


def _kind(task: str) -> str:
    return "embed" if task in BARE else "predict"
