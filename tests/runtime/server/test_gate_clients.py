"""Clients that are slow, go, or lie: each loses its own request, and nobody else's."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from raw_client import GARBAGE, PREDICT, broken, connect, exchange, post, read_answer, until

Serve = Callable[..., Any]
WORKS = {"inputs": "splendid"}


def ask(server: Any, **options: Any) -> httpx.Response:
    return httpx.post(server.url + "/predict", json=WORKS, timeout=60, **options)


@pytest.mark.parametrize(
    ("path", "body"), [("/predict", "tei"), ("/v1/embeddings", "openai"), ("/v2/models/m/infer", "kserve")]
)
def test_a_body_that_does_not_arrive_is_408_and_its_connection_ends(serve: Serve, path: str, body: str) -> None:
    server = serve("default", body_seconds=0.5)
    with connect(server.port) as client:
        client.sendall(post(path, b'{"inputs"', length=1000))
        started = time.monotonic()
        answer = read_answer(client)
        assert 0.3 < time.monotonic() - started < 20
        assert answer.status == 408 and b"connection: close" in answer.head
        assert client.recv(1) == b""
    error = json.loads(answer.body)
    said = error["error"]["message"] if body == "openai" else error["error"]
    assert said == "the request body did not arrive within 0.5 s"
    assert set(error) == ({"error", "error_type"} if body == "tei" else {"error"})


def test_a_body_that_drips_is_408_at_the_same_time_as_one_that_stops(serve: Serve) -> None:
    server = serve("default", body_seconds=0.5)
    with connect(server.port) as client:
        client.sendall(post("/predict", b"", length=1000))
        started = time.monotonic()
        client.settimeout(0.05)
        answer = b""
        while time.monotonic() - started < 20 and not answer:
            try:
                client.sendall(b" ")
                answer = client.recv(4096)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")


def test_clients_with_slow_bodies_take_nobodys_place(serve: Serve) -> None:
    server = serve("default", max_concurrent=4)
    slow = [connect(server.port) for _ in range(20)]
    try:
        for client in slow:
            client.sendall(post("/predict", b'{"in', length=24))
        until(lambda: server.serving.arriving == 20)
        assert ask(server).status_code == 200
        for client in slow[:3]:  # and whoever finishes is answered
            client.sendall(b'puts": "splendid"}  ')
            assert read_answer(client).status == 200
    finally:
        for client in slow:
            client.close()
    until(lambda: server.serving.running == server.serving.arriving == server.serving.arriving_bytes == 0)


def test_bodies_on_their_way_are_bounded_by_their_bytes(serve: Serve) -> None:
    server = serve("default", max_body=1000)  # so 64,000 bytes may be on their way
    slow = [connect(server.port) for _ in range(65)]
    try:
        for client in slow:
            client.sendall(post("/predict", b" " * 999, length=1000))
        until(lambda: server.serving.arriving_bytes > 63_000)
        statuses = {ask(server).status_code for _ in range(3)}
        assert statuses == {429} or server.serving.arriving_bytes <= 64_000
    finally:
        for client in slow:
            client.close()
    until(lambda: server.serving.arriving == 0)
    assert ask(server).status_code == 200


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this kernel has no TCP_USER_TIMEOUT")
def test_a_client_that_does_not_read_its_answers_is_cut_off(serve: Serve) -> None:
    server = serve("default", body_seconds=0.5)
    body = json.dumps({"inputs": "a film " * 40_000}).encode()  # the answer is 20 times as large
    with connect(server.port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(3):  # the second waits for the first one's buffer
            client.sendall(post("/tokenize", body))
        until(lambda: server.serving.running > 0)
        until(lambda: server.serving.running == 0 and not server.server.server_state.connections)
    assert ask(server).status_code == 200


def test_thousands_that_vanish_leave_nothing_behind(serve: Serve) -> None:
    server = serve("default")
    draw = random.Random(0)
    whole = post("/predict", json.dumps({"inputs": "film " * 20}).encode())
    until(lambda: not server.serving.running)
    for _ in range(2_000):
        with connect(server.port) as client:
            client.sendall(whole[: draw.randrange(1, len(whole) + 1)])
            if draw.random() < 0.2:  # not a FIN but a RST
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(lambda: server.serving.running == 0 and server.serving.arriving == 0)
    until(lambda: not server.server.server_state.tasks)
    assert ask(server).status_code == 200
    state = server.models.find(None).model.scheduler.state()
    assert state.requests == 0 and state.tokens == 0


def test_a_request_behind_one_that_is_still_answered_waits_its_turn(serve: Serve) -> None:
    server = serve("default")
    with connect(server.port) as client:
        client.sendall(PREDICT * 3)
        answers = [read_all(client) for _ in range(3)]
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 3


def read_all(client: socket.socket) -> bytes:
    """One answer byte by byte, so that the next one stays in the socket."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(1)
    size = int(next(line for line in data.lower().split(b"\r\n") if b"content-length" in line).split(b":")[1])
    while size:
        part = client.recv(size)
        data, size = data + part, size - len(part)
    return data


# What is HTTP after all. 0: no answer, since nobody is there.
OTHERS = {"early end": 0, "absolute": 200, "no version": 200, "upgrade": 200, "5,000 headers": 200} | dict.fromkeys(
    ("path of percent signs", "bad host", "no host", "star"), 404
)


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_http_is_refused_or_cut_off_and_the_next_request_is_answered(serve: Serve, name: str) -> None:
    server = serve("default")
    answer = exchange(server.port, GARBAGE[name], end=name == "early end")
    assert answer.status == OTHERS.get(name, 400)
    assert exchange(server.port, PREDICT).status == 200


def test_random_bytes_and_broken_requests_harm_nobody(serve: Serve) -> None:
    server = serve("default")
    draw = random.Random(1)
    for sent in broken(draw, 500):
        assert exchange(server.port, sent, end=True).status < 500, sent
    assert ask(server).status_code == 200
    until(lambda: server.serving.running == 0)
