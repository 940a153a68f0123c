"""The supervisor, over workers that only answer their process id: deaths, hangs, replacements, signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from repository import ROOT

from nopad.model.cpus import usable_cores
from nopad.runtime.server.workers import share_of_threads

SCRIPT = ROOT / "tests" / "support" / "supervised.py"


class Supervised:
    def __init__(self, how: str, workers: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, how, str(workers)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline() or '{"port": 0}')["port"]

    def ask(self, word: bytes = b"who") -> int | None:
        with socket.create_connection(("127.0.0.1", self.port), 10) as client, contextlib.suppress(OSError):
            client.sendall(word)
            said = client.recv(20)
            return int(said) if said else None
        return None

    def pids(self, count: int) -> set[int]:
        """Ask until so many workers have answered."""
        found: set[int] = set()
        end = time.monotonic() + 30
        while len(found) < count:
            assert time.monotonic() < end
            found |= {pid for pid in [self.ask()] if pid}
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.over()

    def over(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture
def supervised() -> Iterator[Any]:
    running: list[Supervised] = []

    def start(how: str, workers: int = 2) -> Supervised:
        running.append(Supervised(how, workers))
        return running[-1]

    yield start
    for each in running:
        each.process.kill()
        each.process.communicate()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


def test_a_worker_that_dies_or_hangs_is_replaced_while_the_others_answer(supervised: Any) -> None:
    server = supervised("good")
    before = server.pids(2)
    for word in (b"die", b"hang"):
        assert server.ask(word) is None  # its own client: the connection is closed
        assert len({server.ask() for _ in range(4)} - {None}) >= 1
        after = server.pids(2)
        assert len(after & before) == 1 and not any(alive(pid) for pid in before - after)
        before = after
    code, err = server.end()
    assert code == 0 and not any(alive(pid) for pid in before)
    assert "ended by SIGKILL; another one is started" in err and "no progress for 2 s" in err


@pytest.mark.slow
def test_a_rolling_restart_replaces_each_and_loses_no_request(supervised: Any) -> None:
    server = supervised("good")
    before, seen = server.pids(2), set()
    server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 30
    while len(seen - before) < 2 or any(map(alive, before)):
        pid = server.ask()
        assert pid is not None and time.monotonic() < end
        seen.add(pid)
    assert len(seen - before) == 2
    code, err = server.end(signal.SIGINT)
    assert code == 0 and err == ""


def test_an_error_of_loading_ends_the_server_with_it_and_so_do_crashes(supervised: Any) -> None:
    assert supervised("broken").over() == (3, "no bundle at nowhere\n")
    code, err = supervised("crashing", 1).over()
    assert code == 4 and "ended by SIGKILL, 3 times before it was ready; is there enough memory for 1 workers?" in err


@pytest.mark.slow
def test_a_crash_while_loading_is_tried_again(supervised: Any, tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    server = supervised(f"once {tmp_path}/marker")
    assert len(server.pids(2)) == 2
    # The replacement of a rolling restart crashes: the old workers stay.
    before = server.pids(2)
    (tmp_path / "marker").touch()
    server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 30
    while (tmp_path / "marker").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert server.pids(2) == before
    time.sleep(1)  # a drain would not speak of it
    code, err = server.end()
    assert code == 0 and "a new worker could not be started, the old ones stay" in err


@pytest.mark.slow
def test_a_drain_has_a_bound_and_a_second_signal_ends_at_once(supervised: Any) -> None:
    server = supervised("stubborn")
    pids, started = server.pids(2), time.monotonic()
    code, err = server.end()
    assert code == 0 and time.monotonic() - started > 0.5 and "did not end in time and is killed" in err
    assert not any(map(alive, pids))
    server = supervised("stubborn")
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.15)
    code, err = server.end()
    assert code == 0 and err == ""


def test_workers_share_the_threads() -> None:
    assert share_of_threads(8, 3) == 2 and share_of_threads(2, 4) == 1
    assert share_of_threads(None, 2) == max(1, usable_cores() // 2)
