"""Compressed answers: which are, for whom, and that they decompress to the same."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from nopad.runtime.server.compress import chosen

Serve = Callable[..., Any]
BATCH = {"inputs": [["a dull film"]] * 32}


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip;q=0", None),
        ("gzip; q=0, *", "deflate"),
        ("*;q=0.1", "gzip"),
        ("br, zstd", None),
        ("identity;q=1, *;q=0", None),
        ("gzip;q=much", None),
        ("gzip;q=.", None),
        (", ;;", None),
    ],
)
def test_what_the_client_accepts_decides(accepted: str, encoding: str | None) -> None:
    assert chosen(accepted) == encoding


@pytest.mark.parametrize(("encoding", "plain"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
@pytest.mark.parametrize("texts", [8, 400])  # in the event loop, and in another thread
def test_long_answers_are_compressed(serve: Serve, encoding: str, plain: Any, texts: int) -> None:
    url = serve("default", max_batch=400, compress_from=500).url + "/predict"
    body = {"inputs": [["a dull film"]] * texts}
    with httpx.stream("POST", url, json=body, headers={"accept-encoding": encoding}, timeout=60) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == encoding and answer.headers["vary"] == "Accept-Encoding"
    assert int(answer.headers["content-length"]) == len(raw)
    assert plain(raw) == httpx.post(url, json=body, headers={"accept-encoding": "identity"}, timeout=60).content


def test_others_stay_as_they_are(serve: Serve) -> None:
    url = serve("default", max_batch=400, compress_from=500).url
    short = httpx.post(url + "/predict", json={"inputs": "a"}, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in short.headers and "vary" not in short.headers
    unasked = httpx.post(url + "/predict", json=BATCH, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in unasked.headers and unasked.headers["vary"] == "Accept-Encoding"
    default = httpx.post(serve("default").url + "/predict", json=BATCH, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in default.headers
    # tritonclient's asyncio form says that it accepts gzip, and decompresses answers of `infer` alone.
    stats = httpx.get(url + "/v2/models/stats", headers={"accept-encoding": "gzip"})
    assert len(stats.content) > 500 and "content-encoding" not in stats.headers


def test_the_metrics_and_the_openapi_document_are_compressed_too(serve: Serve) -> None:
    url = serve("default", max_batch=400, compress_from=500).url
    for route in ("/metrics", "/openapi.json"):
        answer = httpx.get(url + route, headers={"accept-encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip" and len(answer.text) > 500
