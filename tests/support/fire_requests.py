"""Valid requests of every protocol, and ways to spoil them: in their JSON, their bytes, their frames and their headers.

Everything is drawn from the `random.Random` that is handed in. Helpers, no tests.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

JSON = {"content-type": "application/json"}
FRAME_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Sent:
    """A request as the server gets it. `path` may have a query."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def valid_requests(names: list[str]) -> list[Sent]:
    """Requests of every protocol; which of them a server answers depends on its models, which have these names."""
    texts = ["splendid", "a dull film, an hour of my life I want back", "Straße 東京 🎬", "the [MASK] film " * 40]
    pairs = [["a", "b"], ["c"], ["d", "e"]]
    documents = {"query": "which film", "documents": texts}
    found = [
        *_posts("/predict", {"inputs": texts[0]}, {"inputs": pairs, "truncate": False, "raw_scores": True}),
        *_posts("/predict", {"inputs": ["a", "b"], "truncation_direction": "Left"}),
        *_posts("/embed", {"inputs": texts, "normalize": False, "dimensions": 16}, {"inputs": [[5, 6, 7], "b"]}),
        *_posts("/rerank", {"query": "q", "texts": texts, "return_text": True}, documents),
        *_posts("/similarity", {"inputs": {"source_sentence": "a", "sentences": texts}, "parameters": {}}),
        *_posts("/tokenize", {"inputs": texts, "add_special_tokens": False}),
        *_posts("/decode", {"ids": [[5, 6], [7]], "skip_special_tokens": False}),
        *_posts("/", {"inputs": texts[1]}, {"inputs": texts[1], "parameters": {"top_k": 2}}),
        *_posts("/", {"inputs": texts, "parameters": {"function_to_apply": "softmax", "top_k": 1}}),
        *_posts("/", {"inputs": texts, "parameters": {"aggregation_strategy": "none", "ignore_labels": []}}),
        *_posts("/", {"inputs": texts[3], "parameters": {"top_k": 3}}),
        *_posts("/", {"inputs": "a", "parameters": {"candidate_labels": ["x", "y"], "hypothesis_template": "{}?"}}),
        *_posts("/v1/embeddings", {"input": texts, "model": "m", "encoding_format": "base64", "dimensions": 8}),
        *_posts("/v1/rerank", {**documents, "documents": [{"text": "a"}, "b"], "top_n": 1, "return_documents": True}),
        *_posts("/v2/rerank", {**documents, "model": "m", "top_n": 0}),
        *_posts("/score", {"text_1": "a", "text_2": texts}, {"queries": texts, "documents": texts}),
        *_posts("/classify", {"input": texts, "model": "m"}, {"input": texts, "raw_scores": True}),
        *_posts("/v1/classify", {"input": [texts[0], ["a", "b"]], "top_k": 1, "raw_scores": True, "truncate": True}),
        *_posts("/v1/explain", {"input": [texts[0], ["a", "b"]], "method": "shapley", "unit": "token", "budget": 90}),
        *_posts("/v2/repository/index", {}),
        *(Sent("GET", path) for path in ("/health", "/info", "/metrics", "/v1/models", "/v1/models/m", "/v2")),
    ]
    for name in names:
        path = f"/v2/models/{name}/infer"
        text = {"name": "text", "shape": [4], "datatype": "BYTES", "data": texts}
        pair = {**text, "name": "text_pair"}
        found += _posts(path, {"id": "1", "inputs": [text], "parameters": {"timeout": 30_000_000}})
        found += _posts(path, {"inputs": [text, pair], "outputs": [{"name": "scores"}, {"name": "label"}]})
        found += [frame(path, texts), frame(path, texts, "scores", {"classification": 2, "binary_data": True})]
        found.append(Sent("POST", path, b"a raw text", {FRAME_LENGTH: "0"}))
        found.append(Sent("GET", f"/v2/models/{name}"))
    return found


def frame(path: str, texts: list[str], output: str | None = None, options: dict[str, Any] | None = None) -> Sent:
    """A binary request of KServe's v2."""
    tensor = _elements(text.encode() for text in texts)
    row = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor)}}
    asked: dict[str, Any] = {"inputs": [row], "parameters": {"binary_data_output": True}}
    if output:
        asked["outputs"] = [{"name": output, "parameters": options or {}}]
    head = json.dumps(asked).encode()
    return Sent("POST", path, head + tensor, {FRAME_LENGTH: str(len(head))})


def spoiled(draw: random.Random, seeds: list[Sent]) -> Sent:
    """One of the requests, spoiled once or several times."""
    sent = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        ways = FRAME_WAYS if FRAME_LENGTH in sent.headers and draw.random() < 0.7 else WAYS
        sent = draw.choice(ways)(draw, sent, seeds)
    return sent


def _posts(path: str, *bodies: Any) -> list[Sent]:
    return [Sent("POST", path, json.dumps(body).encode(), JSON) for body in bodies]


def _elements(texts: Any) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


# Values that have broken servers: limits of types and of parsers, Unicode that is none, wrong types.
_RAW = "!raw!"  # what follows is put into the JSON as it is
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -1e308, 1e-320),
    *(_RAW + raw for raw in ("NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * 5000, "1" + "0" * 400)),
    *(_RAW + raw for raw in ("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, '"\\ud800"', '"\\udfff a"')),
    *("", " ", "\0", "\ufffe\uffff", "\u202e\u0301" * 20, "a" * 20_000, "🎬" * 3000, "[MASK]" * 50, "{}", "\x7f\x1b"),
    *([], {}, [[]], [None], [""], ["a"] * 33, [["a"]] * 40, [["a", "b", "c"]], [1], [-1], [10**9], [[1, "a"]], [1.5]),
    *({"a": 1}, {"text": "a"}, {"source_sentence": "a"}, "left", "base64", "simple", "softmax", [2**70], [True]),
]
HEADERS: list[tuple[str, str]] = [
    *(("content-type", kind) for kind in ("", "text/plain", "application/json; charset=utf-16", "a/b+json", "\xff")),
    *(("content-encoding", coding) for coding in ("gzip", "deflate", "br", "identity", "gzip, gzip", "\xb2")),
    *(("content-length", length) for length in ("-1", "0", "1", "2000001", "9" * 30, "\xb2", "1e3", " ")),
    *(("x-request-timeout-ms", ms) for ms in ("0", "1", "-5", "999999999", "9" * 20, "nan", "\xb2", "")),
    *((FRAME_LENGTH, size) for size in ("", "0", "-1", "1", "5", "999999999999", "\xb2", "nan")),
    *(("x-request-id", identity) for identity in ("", "a" * 129, "\xff", "a b", "ok")),
    *(("host", host) for host in ("", "[::", "a:b:c", "\xff", "x" * 3000)),
    *(("authorization", key) for key in ("", "Bearer", "Bearer \xff", "Basic =")),
    *(("accept", "\xff"), ("traceparent", "00-zz"), ("cookie", "=;=" * 50), ("expect", "100-continue")),
]


def _value(draw: random.Random, sent: Sent, seeds: list[Sent]) -> Sent:
    """A value of the JSON becomes another, goes, or is there twice."""
    try:
        tree = json.loads(sent.body)
    except (ValueError, RecursionError):
        return _bytes(draw, sent, seeds)
    places = list(_places(tree))
    if not places:
        return replace(sent, body=_dumped(draw.choice(VALUES)))
    holder, key = draw.choice(places)
    match draw.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder *= draw.choice((2, 40))
        case 2 if isinstance(holder, dict):
            holder[draw.choice(("model", "top_k", "truncate", "inputs", "parameters", "\0", ""))] = draw.choice(VALUES)
        case _:
            holder[key] = draw.choice(VALUES)
    return replace(sent, body=_dumped(tree))


def _places(tree: Any) -> Any:
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def _dumped(tree: Any) -> bytes:
    text = json.dumps(tree, ensure_ascii=False)
    begin = text.find('"' + _RAW)
    if begin >= 0:
        raw, end = json.JSONDecoder().raw_decode(text[begin:])
        text = text[:begin] + raw.removeprefix(_RAW) + text[begin + end :]
    return text.encode("utf-8", "surrogatepass")


def _bytes(draw: random.Random, sent: Sent, seeds: list[Sent]) -> Sent:
    body = bytearray(sent.body or b"x")
    for _ in range(draw.randrange(1, 5)):
        place, size = draw.randrange(len(body) + 1), draw.choice((1, 1, 2, 8, 64))
        match draw.randrange(5):
            case 0 if place < len(body):
                body[place] ^= 1 << draw.randrange(8)
            case 1:
                del body[place : place + size]
            case 2:
                body[place:place] = draw.randbytes(size)
            case 3:
                body[place:place] = draw.choice(seeds).body[:200]
            case _:
                del body[place:]
    return replace(sent, body=bytes(body))


def _header(draw: random.Random, sent: Sent, seeds: list[Sent]) -> Sent:
    name, value = draw.choice(HEADERS)
    headers = {**sent.headers, name: value}
    if draw.random() < 0.1:
        headers.pop(draw.choice(list(headers)))
    return replace(sent, headers=headers)


def _path(draw: random.Random, sent: Sent, seeds: list[Sent]) -> Sent:
    path = draw.choice(seeds).path
    match draw.randrange(4):
        case 0:
            place = draw.randrange(len(path) + 1)
            path = path[:place] + draw.choice(("/", "%00", "..", "//", "%ff", "\xff", "🎬", "a" * 3000)) + path[place:]
        case 1:
            path += draw.choice(("?a=1", "?" + "b" * 5000, "?%ff", "/versions/2/infer", "/"))
        case 2:
            return replace(
                sent, method=draw.choice(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "post"))
            )
    return replace(sent, path=path)


def _compressed(draw: random.Random, sent: Sent, seeds: list[Sent]) -> Sent:
    coding = draw.choice(("gzip", "deflate"))
    body = sent.body
    if draw.random() < 0.1:  # a bomb
        body = draw.choice((b" ", b"[", b"\0")) * draw.choice((1_999_999, 2_000_001, 20_000_000))
    body = gzip.compress(body, 1) if coding == "gzip" else zlib.compress(body, 1)
    if draw.random() < 0.3:
        body = _bytes(draw, replace(sent, body=body), seeds).body
    return replace(sent, body=body, headers={**sent.headers, "content-encoding": coding})


def _cut(draw: random.Random, sent: Sent, seeds: list[Sent]) -> Sent:
    return replace(sent, body=sent.body[: draw.randrange(len(sent.body) + 1)] + b"\0" * draw.choice((0, 0, 1, 4)))


def _frame_head(draw: random.Random, sent: Sent, seeds: list[Sent]) -> Sent:
    """The JSON of a frame changes, with or without its length."""
    size = int(sent.headers[FRAME_LENGTH]) if sent.headers[FRAME_LENGTH].isdecimal() else 0
    head = _value(draw, replace(sent, body=sent.body[:size]), seeds).body
    headers = {**sent.headers, FRAME_LENGTH: str(len(head))} if draw.random() < 0.9 else sent.headers
    return replace(sent, body=head + sent.body[size:], headers=headers)


def _frame_length(draw: random.Random, sent: Sent, seeds: list[Sent]) -> Sent:
    size = sent.headers[FRAME_LENGTH]
    sizes = [str(int(size) + step) for step in (-1, 1, -4, 4)] if size.isdecimal() else []
    return replace(sent, headers={**sent.headers, FRAME_LENGTH: draw.choice([*sizes, str(len(sent.body)), "1"])})


def _frame_tensor(draw: random.Random, sent: Sent, seeds: list[Sent]) -> Sent:
    """Another tensor: lengths that lie, no UTF-8, empty elements; or another datatype, shape and size."""
    texts = [draw.choice((b"a", b"", b"\xff\xfe", "東京".encode(), b"\0" * 9, b"b" * 3000)) for _ in range(3)]
    tensor = bytearray(_elements(texts))
    lie = draw.choice((None, 0, 1, 2**31, 2**32 - 1, len(tensor), len(tensor) - 3))
    if lie is not None:
        tensor[:4] = struct.pack("<I", lie)
    size = draw.choice((len(tensor), len(tensor), len(tensor) - 1, len(tensor) + 1, 0, -1, 2**40, "9", 1.5, True, None))
    shape = draw.choice(([3], [3], [3, 1], [1, 3], [], [0], [-1], [2], [2**62, 2**62], [3, 1, 1], [3.0], None, "3"))
    kind = draw.choice(("BYTES", "BYTES", "BYTES", "FP32", "INT64", "FP16", "BOOL", "", None, "bytes"))
    row = {"name": "text", "shape": shape, "datatype": kind, "parameters": {"binary_data_size": size}}
    asked: dict[str, Any] = {"inputs": [row] * draw.choice((1, 1, 1, 2))}
    if draw.random() < 0.5:
        wanted = draw.choice(("scores", "label", "embedding", "entities", "masks", "none"))
        classes = draw.choice((1, 10**9, -1, 2**70, "2", True, 1.5))
        asked["outputs"] = [{"name": wanted, "parameters": {"classification": classes, "binary_data": True}}]
    head = json.dumps(asked).encode()
    return replace(sent, body=head + bytes(tensor), headers={**sent.headers, FRAME_LENGTH: str(len(head))})


Way = Callable[[random.Random, Sent, list[Sent]], Sent]
WAYS: list[Way] = [_value, _value, _value, _value, _bytes, _bytes, _header, _path, _compressed, _cut]
FRAME_WAYS: list[Way] = [_frame_head, _frame_length, _frame_tensor, _frame_tensor, _bytes, _cut, _compressed]
