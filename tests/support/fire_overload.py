"""A server in a process of its own at a multiple of its capacity: what becomes of every request. Helpers, no tests.

Arrivals are open-loop (Poisson, seeded), texts short and long, and each request has a deadline of its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raw_client import post

CLOSED_CALLERS = 32
DEADLINES = (1.0, 2.0, 5.0)  # seconds
GRACE = 10.0  # seconds after the deadline until a request is unanswered
TOLERANCE = 1e-5  # between a score in one micro-batch and in another, fp32 (docs/parity.md)


@dataclass
class Overload:
    """What a run found. The figures of `row` are those of the fire table."""

    capacity: float = 0.0  # requests a second in a closed loop
    places: int = 0  # --max-concurrent
    offered: float = 0.0  # requests a second
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0  # the connection broke
    unanswered: int = 0  # no answer long after the deadline
    wrong: int = 0  # 200 with other scores than offline
    no_retry_after: int = 0  # 429 without it
    latencies: list[float] = field(default_factory=list)  # of the accepted, seconds
    shares: list[float] = field(default_factory=list)  # of its deadline
    lag: float = 0.0  # seconds by which the driver itself was late, at most
    rss: list[float] = field(default_factory=list)  # MiB of the server, each second

    def growth(self) -> float:
        """Of the memory, from the tenth after a warm-up of a fifth to the last tenth."""
        tenth = max(1, len(self.rss) // 10)
        return statistics.median(self.rss[-tenth:]) / statistics.median(self.rss[2 * tenth : 3 * tenth]) - 1

    def row(self) -> dict[str, Any]:
        """The figures."""
        counts = {key: value for key, value in asdict(self).items() if isinstance(value, int | float)}
        known = {200, 408, 429}
        return {
            **counts,
            "requests": sum(self.statuses.values()) + self.lost + self.unanswered,
            "accepted": self.statuses[200],
            "late (408)": self.statuses[408],
            "refused (429)": self.statuses[429],
            "other statuses": sum(count for status, count in self.statuses.items() if status not in known),
            "goodput": self.statuses[200] / self.seconds,
            "p50": percentile(self.latencies, 50),
            "p99": percentile(self.latencies, 99),
            "p99 as a share of the deadline": percentile(self.shares, 99),
            "memory, MiB": self.rss[-1],
            "memory growth": self.growth(),
        }

    def faults(self) -> list[str]:
        """What was not to happen."""
        row = self.row()
        never = ("lost", "unanswered", "wrong", "other statuses", "no_retry_after")
        found = [f"{row[key]} {key}" for key in never if row[key]]
        if row["p99 as a share of the deadline"] > 1:
            found.append(f"p99 is {row['p99 as a share of the deadline']:.3f} of the deadline")
        if row["memory growth"] >= 0.05:
            found.append(f"memory grew by {row['memory growth']:.1%}")
        return found


def percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)] if values else 0.0


@contextmanager
def serving(port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`nopad serve`, ready."""
    command = [sys.executable, "-m", "nopad.runtime.cli", "serve", "--port", str(port), "--quiet", *options]
    process = subprocess.Popen(command)
    try:
        end = time.monotonic() + 120
        while asyncio.run(_healthy(port)) != 200:
            assert process.poll() is None and time.monotonic() < end, "the server does not start"
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(60)


async def _healthy(port: int) -> int:
    try:
        async with Connections(port) as connections:
            return (await connections.ask(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"))[0]
    except OSError:
        return 0


class Connections:
    """HTTP over kept connections, with as little of it as a driver needs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(self, *error: object) -> None:
        for _, writer in self._idle:
            writer.close()

    async def ask(self, sent: bytes) -> tuple[int, bytes, bytes]:
        """Status, head in lower case, body."""
        pair = self._kept() or await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        reader, writer = pair
        try:
            writer.write(sent)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            begin = head.find(b"content-length:")
            body = await reader.readexactly(int(head[begin + 15 : head.index(b"\r\n", begin)])) if begin >= 0 else b""
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in head:
            writer.close()
        else:
            self._idle.append(pair)
        return int(head[9:12]), head, body

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection that the server has not closed meanwhile, as it does with those that are idle for long."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None


def mixed_texts(data: Path, count: int, seed: int) -> list[str]:
    """SST-2 phrases and IMDb reviews, four to one."""
    phrases = [line.split("\t")[1] for line in (data / "sst2/train.tsv").read_text("utf-8").splitlines()[1:]]
    with (data / "imdb/test.jsonl").open(encoding="utf-8") as lines:
        reviews = [json.loads(line)["text"] for _, line in zip(range(5_000), lines, strict=False)]
    draw = random.Random(seed)
    mixed = draw.sample(phrases, count - count // 5) + draw.sample(reviews, count // 5)
    return draw.sample(mixed, count)


def expected_scores(texts: list[str], bundle: str | None) -> list[dict[str, float]]:
    """The offline answers."""
    from nopad.runtime import load

    with load(bundle, threads=1) as model:
        return [answer.scores for answer in model.predict(texts)]


async def capacity(port: int, texts: list[str], seconds: float) -> float:
    """Requests a second that 32 callers get, who ask again as soon as they have their answers."""
    done, end = 0, time.monotonic() + seconds

    async def caller(number: int) -> None:
        nonlocal done
        while time.monotonic() < end:
            status, _, _ = await connections.ask(_request(texts[(done * 7 + number) % len(texts)], 60.0))
            done += status == 200

    async with Connections(port) as connections:
        started = time.monotonic()
        await asyncio.gather(*(caller(number) for number in range(CLOSED_CALLERS)))
        return done / (time.monotonic() - started)


async def overload(
    server: subprocess.Popen[bytes],
    port: int,
    texts: list[str],
    expected: list[dict[str, float]],
    *,
    rate: float,
    seconds: float,
    seed: int,
) -> Overload:
    """Offer so many requests a second."""
    found = Overload(offered=rate, seconds=seconds)
    draw = random.Random(seed)

    async def one(number: int, deadline: float) -> None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(deadline + GRACE):
                status, head, body = await connections.ask(_request(texts[number], deadline))
        except TimeoutError:
            found.unanswered += 1
            return
        except (OSError, EOFError):
            found.lost += 1
            return
        found.statuses[status] += 1
        if status == 200:
            found.latencies.append(time.monotonic() - started)
            found.shares.append(found.latencies[-1] / deadline)
            found.wrong += not _equal(json.loads(body), expected[number])
        found.no_retry_after += status == 429 and b"\r\nretry-after:" not in head

    async def watch() -> None:
        while True:
            found.rss.append(memory(server.pid))
            await asyncio.sleep(1.0)

    async with Connections(port) as connections:
        watching = asyncio.create_task(watch())
        asked: set[asyncio.Task[None]] = set()
        started = due = time.monotonic()
        while due < started + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            found.lag = max(found.lag, time.monotonic() - due)
            task = asyncio.create_task(one(draw.randrange(len(texts)), draw.choice(DEADLINES)))
            asked.add(task)
            task.add_done_callback(asked.discard)
            due += draw.expovariate(rate)
        await asyncio.gather(*asked)
        watching.cancel()
    return found


def memory(pid: int) -> float:
    """MiB that a process holds, with its children (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return pages * 4096 / 2**20 + sum(memory(int(child)) for child in children)


def _request(text: str, deadline: float) -> bytes:
    body = json.dumps({"inputs": text}).encode()
    return post("/predict", body, x_request_timeout_ms=str(int(deadline * 1000)))


def _equal(answer: list[dict[str, Any]], expected: dict[str, float]) -> bool:
    got = {row["label"]: row["score"] for row in answer}
    return got.keys() == expected.keys() and all(abs(got[label] - expected[label]) <= TOLERANCE for label in expected)
