"""Connections: slow headers, endless headers, idle ones, more than there may be; HEAD."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

Serve = Callable[..., Any]
HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n"
BODY = b'{"inputs": "a"}'


def connect(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 10)


def rest(client: socket.socket) -> bytes:
    """What is sent until the server ends the connection."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def answer(client: socket.socket) -> bytes:
    got = b""
    while b"]" not in got:
        part = client.recv(65536)
        assert part
        got += part
    return got


def test_slow_headers_get_408_and_a_connection_without_any_is_closed(serve: Serve) -> None:
    server = serve("default", header_seconds=0.4)
    with connect(server) as silent, connect(server) as slow, connect(server) as blank, connect(server) as again:
        again.sendall(HEAD + BODY)
        assert b"200 OK" in answer(again)
        again.sendall(HEAD[:20])
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(3):  # a byte now and then gives no more time
            time.sleep(0.1)
            slow.sendall(b"x")
            blank.sendall(b"\r\n")
        for client in (slow, again):
            said = rest(client)
            assert said.startswith(b"HTTP/1.1 408 ") and b'"error_type":"Timeout"' in said
        assert rest(silent) == b"" and b"200" not in rest(blank)
    # A request that takes longer than that to be answered is none of these, nor is a pause between two.
    with connect(server) as client:
        for _ in range(2):
            client.sendall(HEAD + BODY)
            assert b"200 OK" in answer(client)
            time.sleep(0.6)


def test_endless_headers_get_431(serve: Serve) -> None:
    for line in (b"x" * 100 + b": y\r\n", b"x" * 100):
        with connect(serve("default")) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
            try:
                for _ in range(2_000):
                    client.sendall(line)
                said = rest(client)
            except OSError:  # more was sent than was read, so the answer may be lost
                continue
            assert said.startswith(b"HTTP/1.1 431 ") or said == b""
    assert httpx.get(serve("default").url + "/health", headers={"x": "y" * 30_000}).status_code == 200


def test_more_connections_wait_until_there_is_room(serve: Serve) -> None:
    server = serve("default", max_connections=3, header_seconds=0.5)
    held = [connect(server) for _ in range(3)]
    for client in held:
        client.sendall(HEAD + BODY)
        assert b"200 OK" in answer(client)
    with connect(server) as waiting:
        waiting.sendall(HEAD + BODY)
        waiting.settimeout(0.3)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        assert len(server.server.server_state.connections) == 3
        held.pop().close()
        waiting.settimeout(10)
        assert b"200 OK" in answer(waiting)
    slow = [connect(server) for _ in range(3)]  # clients that say nothing make room by themselves
    assert httpx.get(server.url + "/health", timeout=10).status_code == 200
    for client in (*held, *slow):
        client.close()


def test_head_is_get_without_a_body(serve: Serve) -> None:
    url = serve("default").url
    for route in ("/health", "/", "/health/live", "/health/ready", "/ping", "/metrics", "/info", "/v2/models/default"):
        head, get = httpx.head(url + route), httpx.get(url + route)
        assert head.status_code == get.status_code == 200 and head.content == b""
        assert head.headers.get("content-type") == get.headers.get("content-type"), route
    with httpx.Client() as client:  # the connection goes on behind it
        assert client.head(url + "/info").headers["content-length"] == str(len(client.get(url + "/info").content))
    assert httpx.head(url + "/predict").status_code == 405
    assert httpx.head(url + "/info", headers={"authorization": "x"}).status_code == 200
