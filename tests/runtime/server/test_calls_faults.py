"""Injected faults, as docs/http.md has them in "What happens when": what clients get, what health says, how it ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from raw_client import until
from running_server import held

Serve = Callable[..., Any]


@pytest.fixture
def server(serve: Serve) -> Any:
    server = serve("default")
    until(lambda: healthy(server))
    return server


def healthy(server: Any) -> bool:
    assert httpx.get(server.url + "/health/live").status_code == 200
    return httpx.get(server.url + "/health/ready").status_code == 200


def ask(server: Any, text: str = "splendid", **headers: str) -> httpx.Response:
    return httpx.post(server.url + "/predict", json={"inputs": text}, headers=headers, timeout=60)


def infer(server: Any) -> httpx.Response:
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}
    return httpx.post(server.url + "/v2/models/default/infer", json=body, timeout=60)


@contextmanager
def engine(server: Any, run: Callable[[Any], Any]) -> Iterator[Any]:
    """The server's engine fails so, for as long as the block lasts."""
    chain = server.models.find(None).model._inference.chain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain._links[0].engine, "run", run)
        yield chain


def raises(error: BaseException) -> Callable[[Any], Any]:
    def run(batch: Any) -> Any:
        raise error

    return run


BAD_ALLOC = RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")


@pytest.mark.parametrize(
    "error", [ValueError("broken"), BAD_ALLOC, MemoryError()], ids=lambda error: type(error).__name__
)
def test_an_engine_that_raises_is_424_or_500_by_the_route_and_unhealthy_until_a_probe_succeeds(
    server: Any, error: Exception
) -> None:
    good = ask(server).json()
    with engine(server, raises(error)):
        failed = ask(server)
        assert failed.status_code == 424 and failed.json()["error_type"] == "Backend"
        assert infer(server).status_code == 500
        assert httpx.post(server.url + "/v1/classify", json={"input": "a"}).status_code == 500
        until(lambda: not healthy(server))
    until(lambda: healthy(server), 10)
    assert ask(server).json() == good


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_engine_that_answers_nan_is_424_for_those_texts_alone(server: Any, value: float) -> None:
    model = server.models.find(None).model
    real = model._inference.chain._links[0].engine.run
    bad_id = model._inference.encode(["terrible"])[0].input_ids[1]

    def run(batch: Any) -> Any:
        logits = np.array(real(batch))
        starts = batch.cu_seqlens
        for place, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
            if bad_id in batch.input_ids[start:end]:
                logits[place] = value
        return logits

    with engine(server, run), ThreadPoolExecutor(16) as pool:
        texts = ["splendid", "terrible", "dull"] * 5
        answers = list(pool.map(lambda text: ask(server, text), texts))
    assert [answer.status_code for answer in answers] == [200, 424, 200] * 5
    assert not any("NaN" in answer.text for answer in answers if answer.status_code == 200)
    assert healthy(server) or until(lambda: healthy(server)) is None


def test_an_engine_that_hangs_is_408_at_the_deadline_503_after_the_bound_and_back_when_it_comes_back(
    serve: Serve,
) -> None:
    server = serve("default", hang_seconds=0.4)
    finish, model = threading.Event(), server.models.find(None).model
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        held(model, finish, patch)
        started = time.monotonic()
        dated = pool.submit(ask, server, **{"x-request-timeout-ms": "300"})
        patient = pool.submit(ask, server, "dull")
        assert dated.result().status_code == 408 and 0.25 < time.monotonic() - started < 5
        until(lambda: not healthy(server))
        assert httpx.get(server.url + "/v2/health/ready").status_code == 503
        new = ask(server)
        assert new.status_code == 503 and "hangs" in new.json()["error"] and "retry-after" in new.headers
        assert not patient.done()
        finish.set()
        assert patient.result().status_code == 200
    until(lambda: healthy(server), 5)
    assert ask(server).status_code == 200


def test_a_deadline_holds_for_a_text_that_waits_for_a_thread_too(server: Any) -> None:
    encoder, finish = server.models.find(None).model.encoder, threading.Event()
    real = encoder.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(encoder), "encode", lambda self, *given, **how: finish.wait(20) and real(*given, **how))
        started = time.monotonic()
        late = ask(server, "a film " * 500, **{"x-request-timeout-ms": "300"})
        assert late.status_code == 408 and time.monotonic() - started < 5
        finish.set()
    assert ask(server).status_code == 200


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_dead_thread_fails_its_requests_at_once_and_is_replaced(server: Any, error: BaseException) -> None:
    scheduler = server.models.find(None).model.scheduler
    restarts = scheduler.state().restarts
    with engine(server, raises(error)):
        started = time.monotonic()
        assert ask(server).status_code == 424 and time.monotonic() - started < 5
        assert scheduler.state().restarts > restarts
        assert not healthy(server)  # no green health over a dead worker
    until(lambda: healthy(server), 10)
    assert ask(server).status_code == 200


def test_a_fault_in_planning_ends_no_server(server: Any) -> None:
    from nopad.runtime.scheduler import queue

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue._Lane, "take", raises(IndexError("the plan")))
        assert ask(server).status_code == 424
    until(lambda: healthy(server), 10)
    assert ask(server).status_code == 200


@pytest.mark.parametrize("jump", [-3e8, 3e8])
def test_clocks_that_jump_change_no_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    server = serve("default")
    real, now = time.time, time.time_ns
    finish = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        held(server.models.find(None).model, finish, monkeypatch)
        waiting = [pool.submit(ask, server, **{"x-request-timeout-ms": "20000"}) for _ in range(6)]
        dated = pool.submit(ask, server, **{"x-request-timeout-ms": "500"})
        until(lambda: server.serving.running == 7)
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        monkeypatch.setattr(time, "time_ns", lambda: now() + int(jump * 1e9))
        assert dated.result().status_code == 408
        assert healthy(server)
        finish.set()
        assert {each.result().status_code for each in waiting} == {200}
    assert ask(server).status_code == 200


class Process:
    """`nopad serve` in a process of its own, of which the port is all that is known."""

    def __init__(self, *options: str, **streams: Any) -> None:
        from nopad.runtime.server.listen import bind

        with bind("127.0.0.1", 0) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            sys.executable,
            "-m",
            "nopad.runtime.cli",
            "serve",
            "--port",
            str(self.port),
            "--threads",
            "1",
            *options,
        ]
        self.process = subprocess.Popen(command, **streams)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        assert self.process.wait(60) is not None

    def answers(self) -> bool:
        assert self.process.poll() is None, f"it ended with {self.process.returncode}"
        try:
            return httpx.get(self.url + "/health").status_code == 200
        except httpx.HTTPError:
            return False


FULL = Path("/dev/full")


@pytest.mark.slow
@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("closed", [False, True], ids=["a full disk", "no stderr"])
def test_logs_that_cannot_be_written_stop_nobody(closed: bool) -> None:
    with FULL.open("w") as full:
        streams = {"stdout": full, "stderr": full}
        with Process(**streams, **({"preexec_fn": close_stderr} if closed else {})) as server:
            until(server.answers)
            for _ in range(3):
                assert httpx.post(server.url + "/predict", content=b"{", headers=JSON).status_code == 400
                assert ask(server).status_code == 200
                with httpx.Client() as client:  # which the server logs
                    client.get(server.url + "/health", headers={"connection": "upgrade", "upgrade": "websocket"})
            assert server.answers()


JSON = {"content-type": "application/json"}


def close_stderr() -> None:
    import os

    os.close(2)
