"""How a server begins and ends: 503 while it loads and drains, running requests finished, errors of loading raised."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from running_server import held

from nopad.runtime.errors import BundleError, UsageError
from nopad.runtime.server.calls import Serving
from nopad.runtime.server.listen import bind
from nopad.runtime.server.models import Models
from nopad.runtime.server.run import Server
from nopad.runtime.server.settings import Settings


class Started:
    """A server whose models load when the test lets them."""

    def __init__(self, **settings: Any) -> None:
        self.models, self.go = Models(), threading.Event()
        self.serving = Serving(Settings(**settings), self.models)
        self.listening = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.server = Server(self.serving, self._load)
        self.thread = threading.Thread(target=self.server.run_until_stopped, args=(self.listening,))
        self.thread.start()

    def _load(self) -> None:
        assert self.go.wait(60)
        self.serving.open({"default": None}, threads=1)

    def close(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.models.close()
        self.listening.close()


def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_loads_drains_and_finishes_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started()
    until(lambda: started.server.started)
    for answer in (httpx.get(started.url + "/health"), httpx.post(started.url + "/predict", json={"inputs": "a"})):
        assert answer.status_code == 503 and answer.json()["error_type"] == "Unhealthy"
        assert answer.headers["retry-after"] == "1"
    assert httpx.get(started.url + "/health/live").status_code == 200
    assert httpx.get(started.url + "/info").status_code == 503
    started.go.set()
    until(lambda: started.serving.ready)

    model = next(iter(started.models)).model
    finish = threading.Event()
    held(model, finish, monkeypatch)
    answers: list[httpx.Response] = []
    ask = threading.Thread(
        target=lambda: answers.append(httpx.post(started.url + "/predict", json={"inputs": "a"}, timeout=60))
    )
    ask.start()
    until(lambda: started.serving.running)
    started.server.drain()
    refused = httpx.post(started.url + "/predict", json={"inputs": "a"})
    assert refused.status_code == 503 and "retry-after" in refused.headers
    assert httpx.get(started.url + "/health/ready").status_code == 503
    assert started.thread.is_alive()
    finish.set()
    ask.join(60)
    assert answers[0].status_code == 200
    started.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(started.url + "/health")


def test_a_drain_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(drain_seconds=0.3)
    started.go.set()
    until(lambda: started.serving.ready)
    model = next(iter(started.models)).model
    finish = threading.Event()
    held(model, finish, monkeypatch)

    def ask() -> None:
        with pytest.raises(httpx.HTTPError):
            httpx.post(started.url + "/predict", json={"inputs": "a"}, timeout=60).raise_for_status()
        finish.set()

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: started.serving.running)
    started.server.drain()
    started.close()
    asking.join(60)
    assert finish.is_set()


def test_a_bundle_that_cannot_be_loaded_ends_the_server_with_its_error(tmp_path: Path) -> None:
    models = Models()
    with bind("127.0.0.1", 0) as listening:
        server = Server(Serving(Settings(), models), lambda: models.open({"m": tmp_path / "nowhere"}))
        with pytest.raises(BundleError, match="no bundle at"):
            server.run_until_stopped(listening)


def test_a_port_that_is_taken_is_named() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="cannot listen on 127.0.0.1 port"):
        bind("127.0.0.1", taken.getsockname()[1]).close()


def test_an_engine_that_hangs_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(hang_seconds=0.3)
    started.go.set()
    until(lambda: started.serving.ready)
    finish = threading.Event()
    held(next(iter(started.models)).model, finish, monkeypatch)
    ask = threading.Thread(target=httpx.post, args=(started.url + "/predict",), kwargs={"json": {"inputs": "a"}})
    ask.start()
    until(lambda: httpx.get(started.url + "/health/ready").status_code == 503)
    assert "hangs" in httpx.get(started.url + "/health").json()["error"]
    assert started.server.stuck() > 0.3
    finish.set()
    ask.join(60)
    until(lambda: httpx.get(started.url + "/health/ready").status_code == 200)
    started.server.drain()
    started.close()


def test_a_retired_server_leaves_new_connections_and_answers_the_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started()
    started.go.set()
    until(lambda: started.serving.ready)
    with httpx.Client() as client:
        assert client.get(started.url + "/health").status_code == 200
        started.server.order("retire")
        until(lambda: started.server._retiring)
        last = client.post(started.url + "/predict", json={"inputs": "a"})
        assert last.status_code == 200 and last.headers["connection"] == "close"
    started.close()
