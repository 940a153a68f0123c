"""What every request passes before a route sees it: its id, its key, its size, and the server's state.

Plain ASGI. It reads the whole body, so that limits hold for chunked and compressed ones, and it is the place where
faults become bodies; nothing below it writes a status of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nopad.runtime.server.calls import Serving, to_json
from nopad.runtime.server.errors import Fault, Kind, body_of, fault_of, headers_of, shape_of, status_of
from nopad.runtime.server.keys import Keys

log = logging.getLogger("nopad.server")
OPEN = frozenset({"/", "/health", "/health/live", "/health/ready", "/ping", "/metrics", "/v2/health/live"}) | {
    "/v2/health/ready"
}
PAGE = "/ui"  # the playground, which asks for a key itself
UNREAD: frozenset[Kind] = frozenset({"body", "slow"})  # faults after which the rest of the body is not read
ARRIVING_BODIES = 64  # largest bodies' worth of bytes that may be on their way at once; more get 429
LENGTH = re.compile("[0-9]+")
ADMIN = ("/admin/", "/v2/repository/models/")
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Gate:
    """The server's outermost layer but CORS."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self.serving = serving
        self._keys = Keys(serving.settings.keys, serving.settings.key_file)
        admin = serving.settings.admin_keys, serving.settings.admin_key_file
        self._admin_keys = Keys(*admin) if any(admin) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; connections of other kinds go straight on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        asks, metrics, started = scope["method"] == "POST", self.serving.metrics, time.monotonic()
        state = scope.setdefault("state", {})  # where a `Call` leaves `batch` and `answered`
        state["arrived"] = started
        self.serving.running += asks
        try:
            await self._pass(scope, receive, exchange, asks)
            if "answered" in state:
                metrics.answered(state["answered"], state["batch"], time.monotonic() - started)
        except _Gone:  # nobody is there to be answered
            metrics.failed("deadline", False)
        except Exception as error:
            fault = fault_of(error)
            if asks:
                metrics.failed(fault.kind, state.get("batch", False))
            if fault.kind == "internal":
                # The message of an error may quote a text, and no text goes into a log.
                frames = "".join(traceback.format_tb(error.__traceback__))
                about = {"fields": {"request_id": exchange.request_id}}
                log.error("request %s: %s\n%s", exchange.request_id, type(error).__name__, frames, extra=about)
            await exchange.refuse(fault)
        finally:
            self.serving.running -= asks

    async def _pass(self, scope: Scope, receive: Receive, exchange: _Exchange, asks: bool) -> None:
        headers, serving = exchange.headers, self.serving
        changes = f"{scope['path']}/".startswith(ADMIN)  # models; then the server need not have any
        self._require_key(scope["path"], headers.get("authorization"), changes)
        if asks:
            if serving.draining or not changes:
                serving.require_ready()
            if not changes:
                self._require_room()
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if shape_of(scope["path"]) != "kserve" and kind != "application/json" and not kind.endswith("+json"):
                raise Fault("media", "Expected request with `Content-Type: application/json`")
            body = await self._read(receive, headers)
            self._require_room()
            await _unless_gone(self.app(scope, _replay(body), exchange.send), receive, exchange)
            return
        await self.app(scope, receive, exchange.send)

    def _require_room(self) -> None:
        # Bodies on their way count by their bytes: slow clients would else take the places of those who are there.
        serving, settings = self.serving, self.serving.settings
        full = serving.running - serving.arriving > settings.max_concurrent
        if full or serving.arriving_bytes > ARRIVING_BODIES * settings.max_body:
            raise Fault("overloaded", "Model is overloaded")

    async def _read(self, receive: Receive, headers: Headers) -> bytes:
        """The whole body, decompressed. Raises `Fault` above the limit, and when it takes too long to come."""
        settings, serving = self.serving.settings, self.serving
        limit, size = settings.max_body, 0
        too_large = Fault("body", f"the request body is larger than {limit} bytes")
        length = headers.get("content-length", "0")
        if len(length) > len(str(limit)) or (LENGTH.fullmatch(length) and int(length) > limit):
            raise too_large
        parts: list[bytes] = []
        serving.arriving += 1
        try:
            async with asyncio.timeout(settings.body_seconds):
                async for part in _parts(receive):
                    parts.append(part)
                    size += len(part)
                    serving.arriving_bytes += len(part)
                    if size > limit:
                        raise too_large
                    self._require_room()
        except TimeoutError:
            said = f"the request body did not arrive within {settings.body_seconds:g} s"
            raise Fault("slow", said) from None
        finally:
            serving.arriving -= 1
            serving.arriving_bytes -= size
        return _plain(b"".join(parts), headers.get("content-encoding", "identity").strip().lower(), limit)

    def _require_key(self, path: str, authorization: str | None, changes: bool) -> None:
        if path in OPEN or path == PAGE or path.startswith(f"{PAGE}/"):
            return
        keys = self._admin_keys if changes else self._keys
        if keys is None:
            raise Fault("forbidden", "models can be changed only where the server was started with --admin-key-file")
        if not keys.allow(authorization.encode() if authorization else None):
            kind = "the admin key" if changes else "an API key"
            raise Fault(
                "unauthorized", f"this server asks for {kind}: Authorization: Bearer KEY", code="invalid_api_key"
            )


class _Gone(Exception):
    """The client left before it had sent its request, or before it was answered."""


class _Exchange:
    """The answer to one request as it is sent: with its id, and refused in the shape of its route."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self._path: str = scope["path"]
        self._send = send
        self._begun = self.ended = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        elif not message.get("more_body", False):
            self.ended = True
        await self._send(message)

    async def refuse(self, fault: Fault) -> None:
        if self._begun:
            return
        shape = shape_of(self._path)
        body = to_json(body_of(fault, shape, self._path))
        headers = {"content-type": "application/json", "content-length": str(len(body)), **headers_of(fault)}
        if fault.kind in UNREAD:
            headers["connection"] = "close"  # the rest of the body is not read
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status_of(fault, shape), "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises `_Gone`."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _plain(body: bytes, encoding: str, limit: int) -> bytes:
    """The body, decompressed. Raises `Fault`, also above `limit` bytes."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise Fault("media", f"Content-Encoding is gzip or deflate here, not {encoding!r}")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip's header or zlib's
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error:
        raise Fault("syntax", f"the request body is not valid {encoding}") from None
    if len(plain) > limit:
        raise Fault("body", f"the request body is larger than {limit} bytes")
    if not inflate.eof:
        raise Fault("syntax", f"the request body is {encoding} that ends too early")
    return plain


def _replay(body: bytes) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:  # a route that waits for the end of the connection: the gate does
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _unless_gone(answering: Awaitable[None], receive: Receive, exchange: _Exchange) -> None:
    """Answer, unless the client leaves: then what has not run of its request is not run. Raises `_Gone`."""
    answer, leaving = asyncio.ensure_future(answering), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and not exchange.ended:
            answer.cancel()
            await asyncio.wait((answer,))
            if not answer.cancelled():
                answer.exception()  # else asyncio would log it, with its message
            raise _Gone
        await answer
    finally:
        leaving.cancel()
        if not answer.done():  # this task itself is cancelled, at the end of a drain
            answer.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
