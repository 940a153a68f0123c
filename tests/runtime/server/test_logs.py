"""The log: JSON lines of requests, no text in any of them, and destinations that fail."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from running_server import Running

from nopad.runtime.errors import EngineError
from nopad.runtime.server.logs import ACCESS, JsonFormatter, LineHandler, TextFormatter, logging_to_stderr

MARKER = "xylophone"
Serve = Callable[..., Running]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """All that the server logs at its most talkative, as JSON."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with logging_to_stderr("json", "debug", access=True):
        yield stream


def lines(stream: io.StringIO, requests: int) -> list[dict[str, Any]]:
    """All lines, once there is one for each of so many requests."""
    end = time.monotonic() + 20
    while stream.getvalue().count(ACCESS) < requests and time.monotonic() < end:
        time.sleep(0.02)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_tells_of_a_request_what_an_operator_asks(serve: Serve, log: io.StringIO) -> None:
    url = serve("default", access_log=True).url
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"x-request-id": "find-me", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    answer = httpx.post(url + "/predict", json={"inputs": [[MARKER], ["b"]]}, headers=headers)
    httpx.post(url + "/predict", json={"inputs": MARKER, "truncate": 5})
    httpx.get(url + "/health")
    answered, refused = (line for line in lines(log, 2) if line["logger"] == ACCESS)
    assert answered.pop("milliseconds") > 0 and answered.pop("time").endswith("Z")
    assert answered == {
        "level": "info",
        "logger": ACCESS,
        "message": "request",
        "request_id": "find-me",
        "route": "/predict",
        "status": 200,
        "model": "default",
        "texts": 2,
        "tokens": int(answer.headers["x-compute-tokens"]),
        "trace_id": trace,
    }
    assert (refused["status"], refused["model"], refused["trace_id"]) == (422, "", "") and refused["request_id"]


BODIES: dict[str, Any] = {
    "/predict": {"inputs": MARKER},
    "/": {"inputs": MARKER, "parameters": {"top_k": MARKER}},
    "/embed": {"inputs": MARKER},
    "/rerank": {"query": MARKER, "texts": [MARKER]},
    "/similarity": {"inputs": {"source_sentence": MARKER, "sentences": [MARKER]}},
    "/tokenize": {"inputs": MARKER},
    "/decode": {"ids": [MARKER]},
    "/embeddings": {"input": MARKER, "model": MARKER},
    "/v1/embeddings": {"input": [MARKER], "dimensions": MARKER},
    "/v1/rerank": {"query": MARKER, "documents": [MARKER]},
    "/v2/rerank": {"query": MARKER, "documents": MARKER},
    "/score": {"text_1": MARKER, "text_2": MARKER},
    "/classify": {"input": [MARKER], "raw_scores": True},
    "/v1/classify": {"input": MARKER, "top_k": MARKER},
    "/v2/models/default/infer": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [MARKER]}]},
    f"/{MARKER}": {"inputs": MARKER},
}


def test_no_text_of_any_request_is_in_the_log(serve: Serve, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through every route: answered, refused, with an engine that fails, and with one that nobody foresaw."""
    server = serve("default", access_log=True)
    model = server.models.find(None).model
    asked = 0

    def ask() -> None:
        nonlocal asked
        with httpx.Client(headers={"content-type": "application/json"}, params={"q": MARKER}, timeout=60) as client:
            for route, body in BODIES.items():
                for content in (json.dumps(body), f'{{"inputs": "{MARKER}', f'["{MARKER}"]'):
                    client.post(server.url + route, content=content)
                    asked += 1

    def broken(batch: Any) -> Any:
        raise EngineError("the device is gone")  # an engine sees token ids, no texts

    async def unforeseen(texts: Any, **options: Any) -> Any:
        raise KeyError(f"cannot digest {texts}")

    ask()
    with monkeypatch.context() as patch:
        patch.setattr(model._inference.chain, "run", broken)
        ask()
    with monkeypatch.context() as patch:
        patch.setattr(model, "aresults", unforeseen)
        ask()
    found = lines(log, asked)
    assert len([line for line in found if line["logger"] == ACCESS]) == asked
    (first, *_) = (line for line in found if line["logger"] == "nopad.server")  # of what nobody foresaw
    assert "KeyError" in first["message"] and "unforeseen" in first["message"] and len(first["request_id"]) == 32
    assert MARKER not in log.getvalue()


def test_an_exception_is_logged_with_its_frames_and_without_its_message() -> None:
    try:
        raise ValueError(MARKER)
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "%d failed", (3,), sys.exc_info())
    text, line = TextFormatter().format(record), json.loads(JsonFormatter().format(record))
    assert " ERROR a: 3 failed\nValueError\n" in text and "test_logs.py" in text and MARKER not in text
    assert line["message"] == "3 failed" and line["exception"].startswith("ValueError") and MARKER not in str(line)


def lost(handler: LineHandler, count: list[int], least: int) -> int:
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "x" * 1000, (), None)
    for _ in range(least):
        handler.emit(record)
    handler.close()
    return len(count)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_lines_that_do_not_fit_on_the_disk_are_counted() -> None:
    count: list[int] = []
    with open("/dev/full", "w", buffering=1) as full:
        assert lost(LineHandler(full, lambda: count.append(1)), count, 3) == 3
        with pytest.raises(OSError, match="space"):
            full.close()


def test_lines_to_a_closed_destination_are_counted() -> None:
    count: list[int] = []
    stream = io.StringIO()
    stream.close()
    assert lost(LineHandler(stream, lambda: count.append(1)), count, 3) == 3


def test_a_reader_that_does_not_read_blocks_nobody() -> None:
    count: list[int] = []
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "w") as stream:
        handler = LineHandler(stream, lambda: count.append(1))
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "x" * 1000, (), None)
        handler.setFormatter(TextFormatter())
        started = time.monotonic()
        for _ in range(12_000):  # 12 MB: neither the pipe nor the queue holds them
            handler.emit(record)
        assert time.monotonic() - started < 20 and len(count) >= 1_500
        taken = 0
        while taken < 100:
            taken += reader.read1(1 << 20).count(b"\n")
        handler._lines.queue.clear()
        # What the thread has written since would block the end of the stream.
        drain = threading.Thread(target=reader.read, daemon=True)
        drain.start()
        handler.close()
        stream.close()
        drain.join(20)


def test_a_request_is_answered_while_its_log_cannot_be_written(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("default", access_log=True)
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with logging_to_stderr("text", "info", access=True, on_error=server.serving.metrics.log_failed):
        for _ in range(3):
            assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
        end = time.monotonic() + 20
        while lost_lines(server) < 3:
            assert time.monotonic() < end
            time.sleep(0.02)


def lost_lines(server: Running) -> float:
    text = httpx.get(server.url + "/metrics").text
    (count,) = (line.split()[1] for line in text.splitlines() if line.startswith("nopad_log_errors_total "))
    return float(count)
