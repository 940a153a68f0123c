"""`nopad serve` as a process of its own, with Ray or without, and callers that ask it. Helpers, no tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from predict_command import NOPAD
from ray_cluster import free_ports

from nopad.runtime.predictor import load

STARTS = 4  # of a command that says that it is to be tried again: a busy machine is too slow for Ray now and then
SECONDS = 600  # for what a busy machine is slow at
LONG_TEXTS = [f"film {i} " + "with a dull and long plot " * 20 for i in range(32)]
NO_SERVER = -1
REFUSED = {503, 404, NO_SERVER}  # by a replica that drains, by Ray's proxies, which know no such route then, by nobody


class Serving:
    """The process, and where it answers."""

    def __init__(self, process: subprocess.Popen[str], url: str, stderr: Path) -> None:
        self.url = url
        self._process = process
        self._stderr = stderr

    def signal(self, number: int, *, group: bool = False) -> None:
        """A signal to the process, or, as a terminal sends Ctrl-C, to all that it has started, too."""
        (os.killpg if group else os.kill)(self._process.pid, number)

    def wait(self) -> int:
        """The exit code."""
        return self._process.wait(SECONDS)

    @property
    def said(self) -> str:
        """What it wrote to stderr."""
        return self._stderr.read_text()


@contextmanager
def serving(folder: Path, *arguments: str, port: int | None = None) -> Iterator[Serving]:
    """`nopad serve` with these arguments, as soon as it answers; `folder` takes its stderr."""
    port = port or free_ports(1)[0]
    line = [*NOPAD, "serve", "--json", "--threads", "1", "--port", str(port), *arguments]
    for start in range(STARTS):
        stderr = folder / f"stderr-{port}-{len(list(folder.iterdir()))}"
        with stderr.open("w") as file:
            process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True)
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            if not ready and process.wait(SECONDS) == 4 and "try again" in stderr.read_text() and start < STARTS - 1:
                continue
            assert ready, stderr.read_text()
            yield Serving(process, json.loads(ready)["url"], stderr)
            return
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(SECONDS)
            process.stdout.close()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that was answered, refused or lost."""

    texts: Sequence[str]
    began: float  # by the monotonic clock
    ended: float
    status: int  # of HTTP; `NO_SERVER`: nobody listens; 0: accepted, and not answered
    answer: Any  # of a request that was answered, else the words that say why not


def ask(client: httpx.Client, url: str, texts: Sequence[str]) -> Asked:
    """Ask once."""
    began = time.monotonic()
    try:
        got = client.post(url + "/predict", json={"inputs": [[text] for text in texts]})
        status, answer = got.status_code, got.json() if got.status_code == 200 else got.text
    except httpx.ConnectError as error:
        status, answer = NO_SERVER, repr(error)
    except httpx.HTTPError as error:
        status, answer = 0, repr(error)
    return Asked(texts=texts, began=began, ended=time.monotonic(), status=status, answer=answer)


def ask_all(url: str, requests: Sequence[Sequence[str]], *, clients: int) -> list[Asked]:
    """Each request once, by so many clients with a connection each; in their order."""
    left, lock = iter(enumerate(requests)), threading.Lock()
    asked: dict[int, Asked] = {}

    def work(_: int) -> None:
        with httpx.Client(timeout=SECONDS) as client:
            while True:
                with lock:
                    number, texts = next(left, (-1, ()))
                if number < 0:
                    return
                asked[number] = ask(client, url, texts)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    return [asked[number] for number in range(len(requests))]


class Callers:
    """Threads that ask for the same texts again and again, on a connection of its own each time; what they got.

    `until_refused`: each ends with its first request that is not answered.
    """

    def __init__(
        self, url: str, texts: Sequence[str], *, count: int = 6, pause: float = 0.0, until_refused: bool = False
    ) -> None:
        self.asked: list[Asked] = []
        self._url, self._texts, self._until_refused = url, texts, until_refused
        self._pause = pause  # seconds between an answer and the next request
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def answered(self) -> int:
        """How many requests have been answered until now."""
        return sum(each.status == 200 for each in list(self.asked))

    def _ask(self) -> None:
        while not self._stop.is_set():
            with httpx.Client(timeout=SECONDS) as client:
                self.asked.append(asked := ask(client, self._url, self._texts))
            if asked.status != 200 and self._until_refused:
                return
            time.sleep(self._pause if asked.status == 200 else 0.2)

    def join(self) -> None:
        """Wait until all have been refused."""
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), "a request is neither answered nor refused"

    def stop(self) -> None:
        """Let each end its last request."""
        self._stop.set()
        self.join()


def right(asked: Sequence[Asked]) -> bool:
    """Whether what was answered has the scores that `Model.predict` gives; asserts, so that pytest shows the rows."""
    answered = [each for each in asked if each.status == 200]
    with load(threads=1) as model:
        wanted = [each.score for each in model.predict(answered[0].texts)]
    for each in answered:
        assert [rows[0]["score"] for rows in each.answer] == pytest.approx(wanted, abs=1e-5)
    return True


def end_in_order(server: Serving, number: int, *, group: bool = False) -> None:
    """Signal the server while callers wait for answers: what runs is answered, the rest is refused, none is lost."""
    callers = Callers(server.url, LONG_TEXTS, until_refused=True)
    try:
        until(lambda: callers.answered >= 6, "requests are answered before the signal")
        signalled = time.monotonic()
        server.signal(number, group=group)
    except BaseException:
        callers.stop()
        raise
    callers.join()
    assert server.wait() == 0, server.said
    assert {each.status for each in callers.asked} <= {200, *REFUSED}, [a for a in callers.asked if a.status != 200]
    ran = [each for each in callers.asked if each.status == 200 and each.began < signalled < each.ended]
    assert ran and right(callers.asked)


def until(condition: Any, what: str) -> None:
    """Wait for a condition, as long as a busy machine may take."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)
