"""Floods that must leave nothing in a server's memory. Helpers, no tests."""

from __future__ import annotations

import asyncio
import gzip
import json
import random

from fire_overload import Connections
from raw_client import post

AT_ONCE = 32
# How many of 20,000 each flood sends, and the server's options.
KINDS: dict[str, tuple[float, tuple[str, ...]]] = {
    "clients that leave": (1.0, ()),
    "refused with 429": (1.0, ("--max-concurrent", "1")),
    "huge bodies": (0.02, ()),
}


async def flood(port: int, kind: str, count: int, seed: int) -> int:
    """Send so many requests of a kind; how many were answered."""
    draw, answered = random.Random(seed), 0
    bomb = gzip.compress(b" " * 50_000_000, 1)
    huge = (
        post("/predict", b"", length=2_000_001),
        post("/predict", bomb, content_encoding="gzip"),
        post("/predict", json.dumps({"inputs": "a" + " " * 1_900_000}).encode()),
        post("/predict", b'{"inputs": "' + b"b" * 1_000_000, length=1_999_999),
    )

    async def one(number: int) -> None:
        nonlocal answered
        text = " ".join(draw.choices(("film", "dull", "splendid", str(number)), k=draw.randrange(1, 300)))
        request = post("/predict", json.dumps({"inputs": text}).encode())
        if kind == "huge bodies":
            request = huge[number % len(huge)]
        if kind == "clients that leave" or request is huge[3]:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request[: draw.randrange(1, len(request) + 1)] if draw.random() < 0.5 else request)
            await asyncio.sleep(draw.random() * 0.01)
            writer.transport.abort() if draw.random() < 0.5 else writer.close()
            return
        answered += (await connections.ask(request))[0] > 0

    async with Connections(port) as connections:
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*map(one, range(start, min(count, start + AT_ONCE))))
    return answered
