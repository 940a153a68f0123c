"""A client on a bare socket, which can send what no library would. Helpers, no tests."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable, Iterator
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


GARBAGE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00",
    "no method": b"/predict HTTP/1.1\r\nhost: x\r\n\r\n",
    "unknown method": b"FIRE /predict HTTP/1.1\r\nhost: x\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "version 9": b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n",
    "no colon": b"GET /health HTTP/1.1\r\nhost x\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "length and chunks": b"POST /predict HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: -3\r\n\r\nabc",
    "length in words": b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: \xb2\r\n\r\nabc",
    "huge length": b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 400 + b"\r\n\r\nabc",
    "bad chunk": b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "chunk too long": b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabcde\r\n0\r\n\r\n",
    "early end": post("/predict", b'{"inputs"', length=100),
    "unknown coding": b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: zip\r\n\r\nabc",
    "path beyond ASCII": b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    "path of percent signs": b"GET /%ff%00%zz HTTP/1.1\r\nhost: x\r\n\r\n",
    "bad host": b"GET /nothing HTTP/1.1\r\nhost: [::\r\n\r\n",
    "no host": b"GET /nothing HTTP/1.1\r\n\r\n",
    "star": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "proxy": b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "absolute": b"GET http://example.com/health HTTP/1.1\r\nhost: x\r\n\r\n",
    "upgrade": b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "HTTP 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "5,000 headers": b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
    "garbage behind a request": PREDICT + b"\0\0\0\0",
}


def broken(draw: random.Random, count: int) -> Iterator[bytes]:
    """So many requests with bytes that are changed, gone or there twice."""
    for _ in range(count):
        sent = bytearray(draw.choice([PREDICT, *GARBAGE.values()])[:400])
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(sent))
            match draw.randrange(3):
                case 0:
                    sent[place] = draw.randrange(256)
                case 1:
                    del sent[place : place + draw.randrange(1, 20)]
                    sent = sent or bytearray(b"x")
                case _:
                    sent[place:place] = sent[draw.randrange(len(sent)) :][: draw.randrange(1, 20)]
        yield bytes(sent)
