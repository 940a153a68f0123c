"""A client on a bare socket, which can send what no library would. Helpers, no tests."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import NamedTuple


class Raw(NamedTuple):
    """An answer as it came; status 0 for none at all."""

    status: int
    head: bytes
    body: bytes


def post(path: str, body: bytes, length: int | None = None, **headers: str) -> bytes:
    """The bytes of a POST of JSON; `length` may lie."""
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


PREDICT = post("/predict", json.dumps({"inputs": "splendid"}).encode())


def connect(port: int, timeout: float = 30.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def read_answer(client: socket.socket) -> Raw:
    """The first answer, to the end of its body or of the connection."""
    data = b""
    try:
        while True:
            head, found, body = data.partition(b"\r\n\r\n")
            if found:
                sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if len(body) >= (int(sizes[0].partition(b":")[2]) if sizes else 0):
                    return Raw(int(head.split()[1]), head, body)
            part = client.recv(1 << 16)
            if not part:
                break
            data += part
    except ConnectionError:
        pass
    return Raw(0, data, b"")


def exchange(port: int, sent: bytes, *, end: bool = False) -> Raw:
    """Send bytes on a new connection and read the first answer. The server takes the `end` for leaving."""
    with connect(port) as client:
        try:
            client.sendall(sent)
            if end:
                client.shutdown(socket.SHUT_WR)
        except OSError:  # the server has closed already; its answer may still be there
            pass
        return read_answer(client)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for it; fails the test after so long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
