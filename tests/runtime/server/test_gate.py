"""The gate: keys, limits, compression, chunks, vanishing clients, CORS, and what reaches the log."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from running_server import answers_with, held, slow

JSON = {"content-type": "application/json"}
Serve = Callable[..., Any]


def test_without_a_key_only_health_is_answered(serve: Serve) -> None:
    url = serve("default", keys=("first", "second")).url
    for route in ("/", "/health", "/ping", "/health/live", "/health/ready"):
        assert httpx.get(url + route).status_code == 200
    for key in ({}, {"authorization": "Bearer third"}, {"authorization": "first"}):
        refused = httpx.post(url + "/predict", json={"inputs": "a"}, headers=key)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error_type"] == "Unauthorized"
        for route in ("/info", "/docs", "/openapi.json", "/nothing"):
            assert httpx.get(url + route, headers=key).status_code == 401
    for key in ("first", "second"):
        answer = httpx.post(url + "/predict", json={"inputs": "a"}, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200


def test_the_limit_holds_for_the_bytes_that_arrive_and_for_those_they_unpack_to(serve: Serve) -> None:
    url = serve("default").url + "/predict"
    exact = json.dumps({"inputs": "a "}).encode()
    exact = exact.replace(b"a ", b"a" + b" " * (2_000_000 - len(exact) + 1))
    assert len(exact) == 2_000_000 and httpx.post(url, content=exact, headers=JSON, timeout=60).status_code == 200

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(exact), 1 << 16):
            yield exact[start : start + (1 << 16)]
        yield b" "

    for content in (exact + b" ", chunks()):
        assert httpx.post(url, content=content, headers=JSON, timeout=60).status_code == 413
    bomb = gzip.compress(exact + b" ")
    assert len(bomb) < 10_000
    assert httpx.post(url, content=bomb, headers={**JSON, "content-encoding": "gzip"}).status_code == 413


def test_compressed_bodies_are_read(serve: Serve) -> None:
    url, body = serve("default").url + "/predict", b'{"inputs": "splendid"}'
    plain = httpx.post(url, content=body, headers=JSON).json()
    for encoding, content in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        assert httpx.post(url, content=content, headers={**JSON, "content-encoding": encoding}).json() == plain
    for encoding, content, status in (
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(body)[:-4], 400),
        ("br", body, 415),
    ):
        answer = httpx.post(url, content=content, headers={**JSON, "content-encoding": encoding})
        assert answer.status_code == status and encoding in answer.json()["error"]


def test_a_client_that_vanishes_harms_nobody(serve: Serve) -> None:
    server = serve("default")
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    body = json.dumps({"inputs": "film " * 500}).encode()
    whole = head.replace(b"1000", str(len(body)).encode()) + body
    for sent in (head, head + b'{"inputs"', whole):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(sent)
    assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
    end = time.monotonic() + 30
    while server.serving.running:
        assert time.monotonic() < end
        time.sleep(0.02)


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    records, root = Records(), logging.getLogger()
    root.addHandler(records)
    yield records.lines
    root.removeHandler(records)


def test_an_unforeseen_error_is_500_and_its_trace_is_logged_without_texts(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    server = serve("default")

    async def broken(texts: list[str], **options: Any) -> Any:
        raise KeyError(f"cannot digest {texts[0]}")

    monkeypatch.setattr(next(iter(server.models)).model, "aresults", broken)
    answer = httpx.post(server.url + "/predict", json={"inputs": "a secret"}, headers={"x-request-id": "find-me"})
    assert answer.status_code == 500 and "Traceback" not in answer.text and "secret" not in answer.text
    (line,) = logged
    assert "find-me" in line and "KeyError" in line and "broken" in line and "secret" not in line


def test_ordinary_faults_and_answers_leave_nothing_in_the_log(serve: Serve, logged: list[str]) -> None:
    url = serve("default").url
    for body in ({"inputs": "a secret"}, {"inputs": ["a", "b", "c"]}, {"inputs": " "}, {"nothing": 1}):
        httpx.post(url + "/predict", json=body)
    assert not [line for line in logged if "HTTP Request" not in line]  # httpx, the client, logs its own requests


def test_too_many_requests_at_once_get_429_and_when_to_come_back(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("default", max_concurrent=1)
    monkeypatch.setattr(server.serving, "running", 1)
    answer = httpx.post(server.url + "/predict", json={"inputs": "a"})
    assert answer.status_code == 429 and answer.json() == {"error": "Model is overloaded", "error_type": "Overloaded"}
    assert answer.headers["retry-after"] == "1" and answer.headers["retry-after-ms"] == "1000"
    assert httpx.get(server.url + "/health").status_code == 200


def test_a_queue_without_room_for_a_whole_request_refuses_all_of_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("default", max_queue=2)
    ask = {"url": server.url + "/predict", "timeout": 60}
    never = httpx.post(json={"inputs": [["a"]] * 3}, **ask)  # not even into an empty queue
    assert never.status_code == 422 and "more than may ever wait" in never.json()["error"]
    finish = threading.Event()
    held(next(iter(server.models)).model, finish, monkeypatch)
    answers: list[int] = []
    waiting = [
        threading.Thread(target=lambda: answers.append(httpx.post(json={"inputs": [["a"]]}, **ask).status_code))
        for _ in range(2)
    ]
    for count, thread in enumerate(waiting):
        thread.start()
        until(lambda count=count: server.models.find(None).model.scheduler.state().running == 1)
        until(lambda count=count: server.models.find(None).waiting == count)
    full = httpx.post(json={"inputs": [["a"], ["b"]]}, **ask)
    assert full.status_code == 429 and full.json()["error_type"] == "Overloaded"
    assert int(full.headers["retry-after"]) >= 1 and int(full.headers["retry-after-ms"]) > 0
    assert server.models.find(None).waiting == 1  # nothing of it was queued
    finish.set()
    for thread in waiting:
        thread.join(60)
    assert answers == [200, 200]


def test_what_a_client_that_left_had_queued_is_not_run(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("default", max_queue=3)
    model, finish = server.models.find(None).model, threading.Event()
    held(model, finish, monkeypatch)
    first = threading.Thread(target=httpx.post, args=(server.url + "/predict",), kwargs={"json": {"inputs": "a"}})
    first.start()
    until(lambda: model.scheduler.state().running == 1)
    body = b'{"inputs": "b"}'
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head + body)
        until(lambda: server.models.find(None).waiting == 1)
    until(lambda: server.serving.running == 1)  # the request is over before the engine is
    finish.set()
    first.join(60)
    ran = "te_batch_next_size_sum 1.0"
    until(lambda: ran in httpx.get(server.url + "/metrics").text)
    assert httpx.post(server.url + "/predict", json={"inputs": "c"}).status_code == 200
    text = httpx.get(server.url + "/metrics").text
    assert "te_batch_next_size_sum 2.0" in text and 'te_request_failure{err="dropped"} 1.0' in text


def test_a_failing_engine_is_424_and_not_healthy_until_it_works_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nopad.runtime.errors import EngineError

    server = serve("default", max_queue=4)
    chain = server.models.find(None).model._inference.chain

    def broken(batch: Any) -> Any:
        raise EngineError("the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(chain, "run", broken)
        answer = httpx.post(server.url + "/predict", json={"inputs": "a"})
        assert answer.status_code == 424 and answer.json()["error_type"] == "Backend"
        until(lambda: httpx.get(server.url + "/health").status_code == 503)
        assert httpx.get(server.url + "/health/live").status_code == 200
        assert httpx.get(server.url + "/v2/health/ready").status_code == 503
    until(lambda: httpx.get(server.url + "/health").status_code == 200)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_deadline_is_408_in_the_header_and_in_the_settings(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("default")
    model = next(iter(server.models)).model
    slow(model, 0.5, monkeypatch)
    late = httpx.post(server.url + "/predict", json={"inputs": "a"}, headers={"x-request-timeout-ms": "50"})
    assert late.status_code == 408 and late.json()["error_type"] == "Deadline"
    assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
    for wrong in ("0", "-1", "soon", "1e3", "99999999999999", "9" * 5000):
        answer = httpx.post(server.url + "/predict", json={"inputs": "a"}, headers={"x-request-timeout-ms": wrong})
        assert answer.status_code == 422


def test_nan_never_leaves_as_json(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    server = serve("default")
    model = next(iter(server.models)).model
    (good,) = model.predict(["a"])
    for value in (float("nan"), float("inf")):
        bad = dataclasses.replace(good, scores={"negative": value, "positive": 1.0})
        answers_with(model, [bad], monkeypatch)
        answer = httpx.post(server.url + "/predict", json={"inputs": "a"})
        assert answer.status_code == 424 and "NaN" in answer.json()["error"]


def test_browsers_of_other_origins_are_let_in_only_where_they_are_named(serve: Serve) -> None:
    ask = {"origin": "https://a.example", "access-control-request-method": "POST"}
    closed = httpx.options(serve("default").url + "/predict", headers=ask)
    assert closed.status_code == 405 and "access-control-allow-origin" not in closed.headers
    url = serve("default", cors_origins=("https://a.example",), keys=("k",)).url
    opened = httpx.options(url + "/predict", headers=ask)
    assert opened.status_code == 200 and opened.headers["access-control-allow-origin"] == "https://a.example"
    other = httpx.options(url + "/predict", headers={**ask, "origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    headers = {"origin": "https://a.example", "authorization": "Bearer k"}
    answer = httpx.post(url + "/predict", json={"inputs": "a"}, headers=headers)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://a.example"
