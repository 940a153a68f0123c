"""Runs against servers whose latency is known, and against `nopad serve` itself."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running_server import Running, slow

from nopad.bench.load.client import RIGHT, Ask, Client, Outcome, closed_loop, open_loop, session
from nopad.bench.load.figures import latency_of
from nopad.runtime import cli

ANSWER = json.dumps([[0.6, 0.8]]).encode()


class Fake:
    """Answers after `delay` seconds, but to nobody from `stall[0]` to `stall[1]` seconds after the first request."""

    def __init__(self, delay: float, stall: tuple[float, float] = (0.0, 0.0), status: bytes = b"200 OK") -> None:
        self.delay, self.stall, self.status = delay, stall, status
        self.first: float | None = None
        self.bodies: list[bytes] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), b":0"
                )
                self.bodies.append(await reader.readexactly(int(length.split(b":")[1])))
                now = time.monotonic()
                self.first = now if self.first is None else self.first
                since, (begin, end) = now - self.first, self.stall
                await asyncio.sleep(self.delay + (end - since if begin <= since < end else 0.0))
                writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (self.status, len(ANSWER), ANSWER))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()


@contextmanager
def served(fake: Fake) -> Iterator[str]:
    """The fake server in a thread of its own, and its URL."""
    loop = asyncio.new_event_loop()
    listening = socket.create_server(("127.0.0.1", 0))

    async def run() -> None:
        server = await asyncio.start_server(fake.handle, sock=listening)
        stop.append((server, asyncio.current_task()))
        ready.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.05)

    ready, stop = threading.Event(), []  # type: ignore[var-annotated]
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    loop.call_soon_threadsafe(stop[0][1].cancel)
    thread.join(10)
    loop.close()


ASKS = [Ask(texts=(0,), body=b'{"inputs": "a"}')] * 300


def opened(url: str, seconds: float, rate: float = 100.0) -> list[Outcome]:
    async def go() -> list[Outcome]:
        times = [n / rate for n in range(int(rate * seconds))]
        async with session({}) as pool:
            return (await open_loop(Client(pool, url, timeout=10.0), times, ASKS[: len(times)]))[1]

    return asyncio.run(go())


def latencies(outcomes: list[Outcome]) -> list[float]:
    assert {outcome.kind for outcome in outcomes} == {RIGHT}
    return [outcome.done - outcome.planned for outcome in outcomes]


def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() -> None:
    """Coordinated omission: a server of 10 ms that answers nobody for half a second of one and a half."""
    stall = (0.5, 1.0)
    with served(Fake(0.01, stall)) as url:
        open_ = latency_of(latencies(opened(url, seconds=1.5)))

    async def go(url: str) -> list[Outcome]:
        async with session({}) as pool:
            return (await closed_loop(Client(pool, url, timeout=10.0), 1, 1.5, ASKS))[1]

    with served(Fake(0.01, stall)) as url:
        closed = latency_of(latencies(asyncio.run(go(url))))
    assert open_ is not None and closed is not None
    # A third of the requests were due during the stall, and waited half of it on average.
    assert open_.p99 > 0.45 and open_.p90 > 0.3 and open_.mean > 0.07
    assert closed.p90 < 0.25 and closed.most > 0.45  # one caller met it, once


def test_latency_is_what_the_server_takes() -> None:
    with served(Fake(0.05)) as url:
        took = latency_of(latencies(opened(url, seconds=1.0)))
    assert took is not None and 0.049 < took.p50 < 0.1


def test_statuses_time_outs_and_dead_servers_are_counted_by_kind() -> None:
    async def kinds(url: str, timeout: float) -> str:
        async with session({}) as pool:
            return (await Client(pool, url, timeout=timeout).send(ASKS[0])).kind

    for status, kind in ((b"429 Too Many Requests", "429"), (b"500 Oh", "5xx"), (b"408 Late", "408")):
        with served(Fake(0.0, status=status)) as url:
            assert asyncio.run(kinds(url, 5.0)) == kind
    with served(Fake(1.0)) as url:
        assert asyncio.run(kinds(url, 0.1)) == "timeout"
    assert asyncio.run(kinds("http://127.0.0.1:1/", 5.0)) == "connection"


@pytest.fixture(scope="module")
def ours() -> Iterator[Running]:
    running = Running({"default": None}).start()
    yield running
    running.stop()


FEW = ["--duration", "0.3", "--warmup", "0.1", "--rounds", "1", "--quiet", "--rate", "20,40", "--target-p99-ms", "2000"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("splendid\na dull film\nan hour of my life that I want back\n")
    return path


def bench(*arguments: object) -> int:
    return cli.run(["bench", *map(str, arguments)])


def test_two_servers_in_turns_with_every_answer_checked(
    ours: Running, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    both = ["--serve", f"tei={ours.url}", "--serve", f"kserve={ours.url}", "--protocol", "kserve=kserve"]
    assert bench(*both, "--check", DEFAULT, "--data", texts, "--concurrency", "2", "-o", out, *FEW) == 0
    printed = capsys.readouterr().out
    report = json.loads((out / "load.json").read_text())
    assert report["complete"] and [at["protocol"] for at in report["endpoints"]] == ["tei-predict", "kserve"]
    steps = report["steps"]
    assert len(steps) == 2 * 3 and all(step["right"] == step["requests"] > 0 and not step["errors"] for step in steps)
    assert {(step["round"], step["mode"], step["load"]) for step in steps} >= {(0, "open", 40.0), (0, "closed", 2)}
    assert all(step["tokens"] > step["texts"] for step in steps)
    assert printed == (out / "load.md").read_text() and "| 40 requests/s |" in printed
    html = (out / "load.html").read_text()
    assert "<svg" in html and "http-equiv" in html and "Against offered load" in html and "2 callers" in html


DEFAULT = str(Path(cli.__file__).parent / "default" / "bundle")


@pytest.mark.parametrize("protocol", ["tei-predict", "hub", "infinity-classify", "nopad-classify", "kserve"])
def test_every_protocol_of_ours_answers_as_offline(ours: Running, texts: Path, protocol: str, tmp_path: Path) -> None:
    assert bench("--serve", ours.url, "--protocol", protocol, "--check", DEFAULT, "--data", texts, "--concurrency", "1",
                 "--duration", "0.2", "--warmup", "0", "--rounds", "1", "--quiet", "-o", tmp_path) == 0  # fmt: skip
    (step,) = json.loads((tmp_path / "load.json").read_text())["steps"]
    assert step["right"] == step["requests"] > 0


def test_wrong_answers_are_found(texts: Path, tmp_path: Path) -> None:
    with served(Fake(0.0)) as url:
        assert bench("--serve", url, "--template", '{"text": TEXT}', "--check", DEFAULT, "--data", texts, "-o",
                     tmp_path, *FEW) == 0  # fmt: skip
    steps = json.loads((tmp_path / "load.json").read_text())["steps"]
    assert all(set(step["errors"]) == {"wrong answer"} and step["right"] == 0 and step["good"] == 0 for step in steps)


@pytest.mark.slow
def test_the_sweep_goes_up_to_saturation(
    ours: Running, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (served_model,) = list(ours.models)
    slow(served_model.model, 0.02, monkeypatch)
    assert bench("--serve", ours.url, "--data", texts, "--duration", "0.5", "--warmup", "0.1", "--rounds", "2", "-o",
                 tmp_path, "--target-p99-ms", "150", "--quiet", "--deadline-ms", "300") == 0  # fmt: skip
    steps = json.loads((tmp_path / "load.json").read_text())["steps"]
    rates = sorted({step["load"] for step in steps if step["mode"] == "open"})
    capacity = next(step["answered"] for step in steps if step["mode"] == "closed")
    assert len(rates) >= 6 and rates[0] == pytest.approx(0.25 * capacity, rel=0.02)
    assert rates[-1] == pytest.approx(1.2 * capacity, rel=0.02)
    later = {step["load"] for step in steps if step["round"] == 1}
    assert later <= set(rates) and 1 <= len(later) <= 6  # only those around the place where the target is missed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--serve", "localhost:8000"], "begins with http"),
        (["--serve", "a=http://x", "--serve", "a=http://y"], "two servers with one name"),
        (["--serve", "http://127.0.0.1:1", "--protocol", "grpc"], "there are tei-predict"),
        (["--serve", "http://127.0.0.1:1", "--arrivals", "bursts"], "there are poisson"),
        (["--serve", "http://127.0.0.1:1", "--rate", "ten"], "neither auto nor a list"),
        (["--serve", "http://127.0.0.1:1", "--concurrency", "1.5"], "is not a list"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*arguments, "--quiet") == 2
    assert message in capsys.readouterr().err


def test_nobody_there_and_nobody_who_says_what_he_speaks(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--serve", "http://127.0.0.1:1", "--data", texts, *FEW) == 4
    assert "is the server up?" in capsys.readouterr().err
    with served(Fake(0.0, status=b"404 Not Found")) as url:
        assert bench("--serve", url, "--data", texts, *FEW) == 2
    assert "name its --protocol" in capsys.readouterr().err
