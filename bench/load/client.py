"""Requests over HTTP at planned times, or by callers in a loop, and what became of each.

One thread and one event loop, on aiohttp over uvloop: 0.2 ms of CPU a request, where httpx took 0.8 and more. How late
the client was is reported all the same (`Outcome.sent` against `planned`).
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nopad.bench.load.protocols import Row, rows_of

if TYPE_CHECKING:
    import aiohttp

RIGHT = "right"
LEAD = 0.1  # seconds before the first planned moment: tasks and connections are ready
# Whether the rows of an answer are those of the texts with these indices.
Check = Callable[[Sequence[int], Sequence[Row]], bool]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request, ready to be sent: the indices of its texts, and its body."""

    texts: tuple[int, ...]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a request. Seconds on one clock."""

    ask: Ask
    planned: float
    sent: float
    done: float
    kind: str  # RIGHT, "wrong answer", "429", "408", "5xx", "connection", "timeout", ...


class Client:
    """Requests to one URL."""

    def __init__(self, session: aiohttp.ClientSession, url: str, *, timeout: float, check: Check | None = None) -> None:
        self._session, self._url, self._timeout, self._check = session, url, timeout, check

    async def send(self, ask: Ask, planned: float | None = None) -> Outcome:
        """Send a request now, and wait for what becomes of it."""
        import aiohttp

        sent = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                async with self._session.post(self._url, data=ask.body) as response:
                    raw = await response.read()
            done = time.perf_counter()
            kind = self._judge(ask, raw) if response.status == 200 else _kind(response.status)
        except TimeoutError:
            done, kind = time.perf_counter(), "timeout"
        except (aiohttp.ClientError, OSError):
            done, kind = time.perf_counter(), "connection"
        return Outcome(ask=ask, planned=sent if planned is None else planned, sent=sent, done=done, kind=kind)

    def _judge(self, ask: Ask, raw: bytes) -> str:
        try:
            rows = rows_of(json.loads(raw))
        except (ValueError, TypeError, KeyError):
            return "unreadable answer"
        if len(rows) != len(ask.texts) or (self._check is not None and not self._check(ask.texts, rows)):
            return "wrong answer"
        return RIGHT


def _kind(status: int) -> str:
    return str(status) if status in (401, 404, 408, 413, 422, 424, 429, 503) else f"{status // 100}xx"


@asynccontextmanager
async def session(headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientSession]:
    """A pool of as many connections as there are requests on their way."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    own = {"content-type": "application/json", **headers}
    async with aiohttp.ClientSession(
        connector=connector, headers=own, timeout=aiohttp.ClientTimeout(total=None)
    ) as opened:
        yield opened


async def open_loop(client: Client, times: Sequence[float], asks: Sequence[Ask]) -> tuple[float, list[Outcome]]:
    """Send each request at its time, whatever has become of those before it; returns the start and all outcomes.

    A stall of the server delays no request, and an answer's latency is counted from the planned moment.
    """
    with _no_pauses():
        start = time.perf_counter() + LEAD
        tasks: list[asyncio.Task[Outcome]] = []
        for at, ask in zip(times, asks, strict=True):
            wait = start + at - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            elif len(tasks) % 16 == 0:
                await asyncio.sleep(0)  # late: send, but read what has come, too
            tasks.append(asyncio.create_task(client.send(ask, start + at)))
        try:
            return start, list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


async def closed_loop(client: Client, callers: int, seconds: float, asks: Sequence[Ask]) -> tuple[float, list[Outcome]]:
    """Callers who ask again as soon as they are answered, for so long; returns the start and all outcomes."""
    with _no_pauses():
        start = time.perf_counter()
        outcomes: list[Outcome] = []
        turns = iter(range(1 << 60))

        async def caller() -> None:
            while time.perf_counter() < start + seconds:
                outcomes.append(outcome := await client.send(asks[next(turns) % len(asks)]))
                if outcome.kind != RIGHT:
                    await asyncio.sleep(0.01)  # a server that refuses at once is not to be asked in a tight loop

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
        return start, outcomes


class _no_pauses:
    """No garbage collection of cycles while times are taken."""

    def __enter__(self) -> None:
        gc.collect()
        gc.disable()

    def __exit__(self, *exception: object) -> None:
        gc.enable()
