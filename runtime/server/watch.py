"""What is told of every request once it is over: to the metrics, the trace and the access log. Never a text of it.

Plain ASGI, around the gate, so that it also sees what the gate refuses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nopad.runtime.server.calls import Serving
from nopad.runtime.server.logs import ACCESS, FIELDS

if TYPE_CHECKING:
    from nopad.runtime.server.models import Answered
    from nopad.runtime.server.tracing import Trace

access = logging.getLogger(ACCESS)
LEFT = 499  # nginx's status for a client that went before it was answered
NO_ROUTE = "none"


class Watch:
    """The layer around the gate."""

    def __init__(self, app: ASGIApp, serving: Serving, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self.serving = serving
        self._routes = [route for route in routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and note how it ended; health checks, scrapes and other GETs are not looked at."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        started, headers = time.monotonic(), Headers(scope=scope)
        trace = self.serving.tracing.begin("POST", headers.get("traceparent", ""), headers.get("tracestate", ""))
        seen = _Seen(scope, send, trace)
        try:
            await self.app(scope, receive, seen.send)
        finally:
            self._note(scope, seen, trace, time.monotonic() - started)

    def _route(self, scope: Scope) -> str:
        """The template of the route, also where the gate let nothing through to it."""
        found = scope.get("route") or next((r for r in self._routes if r.path_regex.match(scope["path"])), None)
        return getattr(found, "path", NO_ROUTE)

    def _note(self, scope: Scope, seen: _Seen, trace: Trace, seconds: float) -> None:
        route = self._route(scope)
        answered: Answered | None = scope.get("state", {}).get("answered")
        model = answered.served.name if answered else ""
        self.serving.metrics.requested(route, seen.status, model, seconds)
        trace.end(route, seen.status, answered)
        if self.serving.settings.access_log:
            fields = {
                "request_id": seen.request_id,
                "route": route,
                "status": seen.status,
                "model": model,
                "texts": len(answered.answers) if answered else 0,
                "tokens": answered.tokens if answered else 0,
                "milliseconds": round(seconds * 1000, 3),
                "trace_id": trace.trace_id,
            }
            access.info("request", extra={FIELDS: fields})


class _Seen:
    """The beginning of the answer as it goes out, with the headers that are for the client's tools."""

    def __init__(self, scope: Scope, send: Send, trace: Trace) -> None:
        self._scope, self._send, self._trace = scope, send, trace
        self.status = LEFT
        self.request_id = ""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            self.status, self.request_id = message["status"], headers.get("x-request-id", "")
            answered: Answered | None = self._scope.get("state", {}).get("answered")
            if answered is not None:
                headers["server-timing"] = server_timing(answered)
            if self._trace.traceparent:
                headers["traceparent"] = self._trace.traceparent
        await self._send(message)


def server_timing(answered: Answered) -> str:
    """W3C's Server-Timing, which browsers show: milliseconds, with the fractions that TEI's headers round away."""
    steps = (("tokenize", answered.tokenizing), ("queue", answered.queued), ("inference", answered.running))
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in (*steps, ("total", answered.seconds)))
