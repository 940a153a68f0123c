"""Answers in gzip or deflate, for clients that accept them: ASGI middleware around the routes."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}  # deflate is zlib's format (RFC 9110)
# 150 kB of embeddings as JSON: 67 kB after 7 ms at level 1, 63 kB after five times as long at level 6.
LEVEL = 1
IN_THE_LOOP = 16_384  # bytes that are compressed sooner than another thread would begin
ACCEPTED = re.compile(r"\s*([\w*-]+)\s*(?:;\s*q=([\d.]+)\s*)?")


class Compress:
    """Compresses bodies of at least `least` bytes. Answers that are sent in parts stay as they are."""

    def __init__(self, app: ASGIApp, least: int) -> None:
        self.app = app
        self.least = least

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and compress its answer."""
        if scope["type"] != "http" or not _compressible(scope["path"]):
            await self.app(scope, receive, send)
            return
        encoding = chosen(Headers(scope=scope).get("accept-encoding", ""))
        start: Message = {}
        begun = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal start, begun
            if message["type"] == "http.response.start":
                start = message
                return
            headers = MutableHeaders(scope=start)
            body, whole = message.get("body", b""), not message.get("more_body", False)
            if "content-length" in headers and whole and len(body) >= self.least:
                headers.add_vary_header("Accept-Encoding")
                if encoding is not None and "content-encoding" not in headers:
                    body = await _compressed(body, encoding)
                    headers["content-encoding"] = encoding
                    headers["content-length"] = str(len(body))
            if not begun:
                begun = True
                await send(start)
            await send({**message, "body": body})

        await self.app(scope, receive, sending)


def chosen(accepted: str) -> str | None:
    """Of the encodings in an `Accept-Encoding` header, the one to take: gzip before deflate, where both weigh alike."""
    weights = {}
    for part in accepted.split(","):
        found = ACCEPTED.fullmatch(part)
        if found:
            try:
                weights[found[1].lower()] = float(found[2] or 1)
            except ValueError:  # no number
                continue
    best = max(WINDOW_BITS, key=lambda name: weights.get(name, weights.get("*", 0.0)))
    return best if weights.get(best, weights.get("*", 0.0)) > 0 else None


def _compressible(path: str) -> bool:
    """Tritonclient's asyncio form accepts gzip for every route, and reads it on `infer` alone."""
    return not path.startswith("/v2/") or path.endswith(("/infer", "/rerank"))


async def _compressed(body: bytes, encoding: str) -> bytes:
    if len(body) <= IN_THE_LOOP:
        return _compress(body, encoding)
    return await asyncio.to_thread(_compress, body, encoding)


def _compress(body: bytes, encoding: str) -> bytes:
    packer = zlib.compressobj(LEVEL, wbits=WINDOW_BITS[encoding])
    return packer.compress(body) + packer.flush()
