"""`nopad serve --workers`: real workers behind one address."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

COMMAND = [sys.executable, "-m", "nopad.runtime.cli", "serve", "--port", "0", "--threads", "2", "--json"]
ASK = {"json": {"inputs": "splendid"}, "timeout": 60}


class Served:
    def __init__(self, folder: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--workers", "2", *options],
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def workers(self) -> set[int]:
        return {pid for pid in children(self.process.pid) if "spawn_main" in command_of(pid)}


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    running: list[Served] = []

    def start(*options: str) -> Served:
        running.append(Served(tmp_path, *options))
        return running[-1]

    yield start
    for each in running:
        left = each.workers() if each.process.poll() is None else set()
        each.process.kill()
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        each.process.communicate()


pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes of Linux")


def test_workers_share_an_address_and_their_counts_and_leave_no_orphans(served: Any, tmp_path: Path) -> None:
    server = served()
    workers = server.workers()
    assert len(workers) == 2
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client()) for _ in range(16)]
        answers = [client.post(server.url + "/predict", **ASK) for client in clients]
        assert {answer.json()[0]["label"] for answer in answers} == {"positive"}

        def counts() -> set[float]:
            texts = [client.get(server.url + "/metrics").text for client in clients]
            return {float(re.findall(r'^te_request_count\{method="single"\} (\S+)', text, re.M)[0]) for text in texts}

        assert counts() == {16.0}  # whichever of them is asked
        killed = workers.pop()
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(server.workers()) == 2 and killed not in server.workers())
    ask = [httpx.post(server.url + "/predict", **ASK).status_code for _ in range(4)]
    assert set(ask) == {200}
    assert len(list(tmp_path.glob("nopad-metrics-*"))) == 1
    until(lambda: httpx.get(server.url + "/health").status_code == 200)
    left = server.workers()
    server.process.kill()
    until(lambda: not any(map(command_of, left)))
    assert not list(tmp_path.glob("nopad-metrics-*"))


@pytest.mark.slow
def test_a_signal_drains_all_workers(served: Any, tmp_path: Path) -> None:
    server = served()
    left = server.workers()
    codes: list[int] = []
    texts = {"json": {"inputs": [["film " * 900]] * 16}, "timeout": 60}
    asking = [
        threading.Thread(target=lambda: codes.append(httpx.post(server.url + "/predict", **texts).status_code))
        for _ in range(4)
    ]
    for each in asking:
        each.start()
    running = re.compile(r"^nopad_requests_running 4\.0$", re.M)
    until(lambda: running.search(httpx.get(server.url + "/metrics").text))
    # Ctrl-C of a terminal reaches the workers too.
    for pid in (*left, server.process.pid):
        os.kill(pid, signal.SIGINT)
    for each in asking:
        each.join(60)
    assert codes == [200] * 4
    assert server.process.wait(60) == 0
    assert not any(map(command_of, left)) and not list(tmp_path.glob("nopad-metrics-*"))


@pytest.mark.slow
def test_a_rolling_restart_under_load_fails_no_request(served: Any) -> None:
    server = served()
    before, codes, over = server.workers(), Counter[Any](), threading.Event()

    def ask(keep: bool) -> None:
        with httpx.Client() as client:
            while not over.is_set():
                try:
                    codes[(client.post if keep else httpx.post)(server.url + "/predict", **ASK).status_code] += 1
                except httpx.HTTPError as error:
                    codes[repr(error)] += 1

    asking = [threading.Thread(target=ask, args=(index % 2 == 0,)) for index in range(6)]
    for each in asking:
        each.start()
    server.process.send_signal(signal.SIGHUP)
    try:
        until(lambda: len(server.workers()) == 2 and not server.workers() & before, 120)
        time.sleep(1)
    finally:
        over.set()
        for each in asking:
            each.join(60)
    assert set(codes) == {200} and codes[200] > 20


@pytest.mark.slow
def test_a_worker_that_stands_still_is_replaced(served: Any) -> None:
    server = served("--hang-seconds", "5")
    (stopped, *_) = server.workers()
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: stopped not in server.workers() and len(server.workers()) == 2)
    assert httpx.post(server.url + "/predict", **ASK).status_code == 200
    server.process.terminate()
    assert server.process.wait(60) == 0
