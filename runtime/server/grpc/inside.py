"""A request to the HTTP application from within its process: no connection, the same routes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Scope


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the application answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def ask(app: ASGIApp, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
    """The application's answer; `path` is percent-encoded. To cancel this coroutine is to it a client that leaves."""
    gone, sent, parts = asyncio.Event(), False, []
    start: Message = {}

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            parts.append(message.get("body", b""))

    answering = asyncio.ensure_future(_run(app, _scope(method, path, headers), receive, send))
    try:
        await asyncio.shield(answering)
    except asyncio.CancelledError:
        gone.set()
        raise
    named = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
    return Reply(status=start["status"], headers=named, body=b"".join(parts))


async def _run(app: ASGIApp, *arguments: object) -> None:
    await app(*arguments)  # type: ignore[arg-type]


def _scope(method: str, path: str, headers: Mapping[str, str]) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "2",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
        "client": None,
        "server": None,
        "state": {},
    }
