"""Traces of requests for an OpenTelemetry collector (OTLP over HTTP). Without one, none of its packages is imported.

A request is a span, a child of the client's where that sent `traceparent` (W3C Trace Context); its steps are spans
below it. Of a request with several texts, queue and inference are of the mean text. No span has a text in it.
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from nopad.runtime.server.models import Answered

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

CLOSE_SECONDS = 3.0  # for what has not been sent at the end; a collector that is down must not hold the server
TRACES = "/v1/traces"
TRACEPARENT = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class Trace(Protocol):
    """One request as it is traced."""

    trace_id: str  # 32 hexadecimal digits; "" if neither the client nor the server traces
    traceparent: str  # of the server's span; "" if it does not trace

    def end(self, route: str, status: int, answered: Answered | None) -> None:
        """The request is over."""


class Tracing(Protocol):
    """What begins traces."""

    def begin(self, method: str, traceparent: str, tracestate: str) -> Trace:
        """A request has come, with the client's headers or ""."""

    def close(self) -> None:
        """Send what is left."""


class _Untraced:
    """Knows the client's trace, for the log."""

    traceparent = ""

    def __init__(self, trace_id: str) -> None:
        self.trace_id = trace_id

    def end(self, route: str, status: int, answered: Answered | None) -> None:
        """Nothing is sent."""


class _Off:
    """Traces nothing."""

    def begin(self, method: str, traceparent: str, tracestate: str) -> Trace:
        """The client's trace goes through to the log."""
        found = TRACEPARENT.fullmatch(traceparent) if traceparent else None
        return _Untraced(found[1] if found else "")

    def close(self) -> None:
        """There is nothing to send."""


class _Otlp:
    """Sends spans from a thread of its own, from a bounded queue: a collector that is slow or down loses spans."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("nopad")

    def begin(self, method: str, traceparent: str, tracestate: str) -> Trace:
        """A span begins, below the client's."""
        return _Traced(self._tracer, method, {"traceparent": traceparent, "tracestate": tracestate})

    def close(self) -> None:
        """Send what is left, within `CLOSE_SECONDS`."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)


class _Traced:
    def __init__(self, tracer: Tracer, method: str, carrier: dict[str, str]) -> None:
        from opentelemetry.trace import SpanKind, format_span_id, format_trace_id
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer, self._method = tracer, method
        # Steps are measured by the monotonic clock, spans want the time of day.
        self._offset = time.time_ns() - time.monotonic_ns()
        parent = TraceContextTextMapPropagator().extract(carrier)
        self._span: Span = tracer.start_span(method, context=parent, kind=SpanKind.SERVER)
        context = self._span.get_span_context()
        self.trace_id = format_trace_id(context.trace_id)
        self.traceparent = f"00-{self.trace_id}-{format_span_id(context.span_id)}-{int(context.trace_flags):02x}"

    def end(self, route: str, status: int, answered: Answered | None) -> None:
        """Name the request by its route, add its steps, and hand it to the exporter."""
        from opentelemetry.trace import StatusCode

        span = self._span
        if span.is_recording():
            span.update_name(f"{self._method} {route}")
            span.set_attributes(
                {"http.request.method": self._method, "http.route": route, "http.response.status_code": status}
            )
            if status >= 500:
                span.set_status(StatusCode.ERROR)
            if answered is not None:
                span.set_attributes(_attributes(answered))
                self._steps(answered)
        span.end()

    def _steps(self, answered: Answered) -> None:
        from opentelemetry.trace import set_span_in_context

        below, at = set_span_in_context(self._span), answered.started
        over = answered.started + answered.seconds
        lengths = {"tokenize": answered.tokenizing, "queue": answered.queued, "inference": answered.running}
        for name, seconds in {**lengths, "decode": over - at - sum(lengths.values())}.items():
            step = self._tracer.start_span(name, context=below, start_time=self._time(at))
            if name == "inference":
                step.set_attribute("nopad.batch_tokens", answered.batch_tokens)
            at = min(at + max(seconds, 0.0), over)
            step.end(self._time(at))

    def _time(self, monotonic: float) -> int:
        return self._offset + int(monotonic * 1e9)


def open_tracing(endpoint: str | None) -> Tracing:
    """Traces for the collector at `endpoint`, as http://localhost:4318, or none.

    Everything else is read from OpenTelemetry's own variables (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER,
    OTEL_EXPORTER_OTLP_HEADERS, OTEL_SDK_DISABLED, ...). Raises `ModuleNotFoundError` without the extra otel.
    """
    if not endpoint:
        return _Off()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = Resource.create({"service.name": "nopad"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    url = endpoint if endpoint.endswith(TRACES) else endpoint.rstrip("/") + TRACES
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return _Otlp(provider)


def _attributes(answered: Answered) -> dict[str, Any]:
    first = answered.answers[0]
    return {
        "nopad.model": answered.served.name,
        "nopad.engine": first.engine,
        "nopad.precision": first.precision,
        "nopad.texts": len(answered.answers),
        "nopad.tokens": answered.tokens,
        "nopad.batch_tokens": answered.batch_tokens,
        "nopad.truncated": answered.truncated,
    }
