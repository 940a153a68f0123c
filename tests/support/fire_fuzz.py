"""Spoiled requests to an application in this process, and what is wrong with its answers. Helpers, no tests.

An answer is right if there is exactly one, below 500, with a request's id; a refusal in the shape of its route; an
answer without NaN and infinity, in JSON and in binary.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from fire_requests import FRAME_LENGTH, Sent, spoiled, valid_requests
from raw_client import broken, exchange

AT_ONCE = 16  # requests
SECONDS = 60.0  # for an answer
OPENAI = {"message", "type", "param", "code"}


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Outcome:
    """What became of many requests: how many of each status, and those that were answered wrongly, the first 20."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, sent: Sent, got: Got | None, said: str | None) -> None:
        self.statuses[got.status if got else 0] += 1
        if said is not None:
            self.wrong += 1
            if len(self.examples) < 20:
                answer = f"{got.status} {got.body[:300]!r}" if got else "no answer"
                self.examples.append(
                    f"{said}: {sent.method} {sent.path} {sent.headers} {sent.body[:400]!r} -> {answer}"
                )

    def add(self, other: Outcome) -> None:
        self.statuses += other.statuses
        self.wrong += other.wrong
        self.examples = (self.examples + other.examples)[:20]


async def ask(app: Any, sent: Sent) -> Got | None:
    """Pass a request to an ASGI application; None if it is not answered whole."""
    path, _, query = sent.path.partition("?")
    headers = [
        (name.encode(), value.encode("utf-8" if "🎬" in value else "latin-1")) for name, value in sent.headers.items()
    ]
    if not any(name == b"host" for name, _ in headers):
        headers.append((b"host", b"x"))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": sent.method,
        "scheme": "http",
        "path": urllib.parse.unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    messages: list[dict[str, Any]] = []
    waiting = asyncio.Event()
    parts = [sent.body[: len(sent.body) // 2], sent.body[len(sent.body) // 2 :]]

    async def receive() -> dict[str, Any]:
        if not parts:
            await waiting.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    await asyncio.wait_for(app(scope, receive, send), SECONDS)
    if not messages or messages[0]["type"] != "http.response.start" or messages[-1].get("more_body", False):
        return None
    found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in messages[0]["headers"]}
    return Got(messages[0]["status"], found, b"".join(message.get("body", b"") for message in messages[1:]))


def wrong_with(sent: Sent, got: Got | None) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if got is None:
        return "unanswered"
    if got.status >= 500:
        return "5xx"
    if "x-request-id" not in got.headers:
        return "no x-request-id"
    try:
        if got.status >= 400:
            return _wrong_refusal(urllib.parse.unquote(sent.path.partition("?")[0]), _strict(got.body))
        if FRAME_LENGTH in got.headers:
            return _wrong_frame(got)
        if got.headers.get("content-type") == "application/json":
            _strict(got.body)
    except ValueError as error:
        return f"no JSON: {error}"
    return None


def _wrong_refusal(path: str, body: Any) -> str | None:
    if path.startswith("/v1/"):
        right = set(body) - {"message"} == {"error"} and set(body["error"]) == OPENAI and "message" in body["error"]
    elif path == "/v2/rerank" or not (path == "/v2" or path.startswith("/v2/")):
        right = set(body) - {"index", "message"} == {"error", "error_type"} and isinstance(body["error"], str)
    else:
        right = set(body) == {"error"} and isinstance(body["error"], str)
    return None if right else "not the shape of the route"


def _wrong_frame(got: Got) -> str | None:
    size = int(got.headers[FRAME_LENGTH])
    head, rest = _strict(got.body[:size]), got.body[size:]
    for output in head["outputs"]:
        count = output.get("parameters", {}).get("binary_data_size")
        if count is None:
            continue
        tensor, rest = rest[:count], rest[count:]
        if output["datatype"] == "FP32":
            values = np.frombuffer(tensor, "<f4")
            if len(values) != np.prod(output["shape"]) or not np.isfinite(values).all():
                return "a tensor of another size, or with NaN"
    return "bytes after the last tensor" if rest else None


def _strict(body: bytes) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} in JSON")

    return json.loads(body, parse_constant=refuse)


async def fuzz(app: Any, requests: Iterable[Sent]) -> Outcome:
    """Send all of them, `AT_ONCE` at a time."""
    outcome = Outcome()

    async def one(sent: Sent) -> None:
        got, said = None, "unanswered"
        try:
            got = await ask(app, sent)
        except TimeoutError:
            pass
        except Exception as error:
            said = f"raised {type(error).__name__}: {error}"
        outcome.note(sent, got, wrong_with(sent, got) if got else said)

    rest = iter(requests)
    while part := list(islice(rest, AT_ONCE)):
        await asyncio.gather(*map(one, part))
    return outcome


def mutated(seed: int, count: int, names: list[str]) -> Iterator[Sent]:
    """So many spoiled requests of all protocols."""
    draw, seeds = random.Random(seed), valid_requests(names)
    return (spoiled(draw, seeds) for _ in range(count))


def from_openapi(app: Any, seed: int, count: int) -> Iterator[Sent]:
    """About so many requests that schemathesis makes of the application's OpenAPI document, right and wrong ones."""
    import schemathesis

    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(app.openapi())))
    operations = [result.ok() for result in schema.get_all_operations()]
    kinds = [(operation, mode) for operation in operations for mode in schemathesis.GenerationMode]
    for operation, mode in kinds:
        yield from _made(operation.as_strategy(generation_mode=mode), seed, max(1, count // len(kinds)))


def _made(cases: Any, seed: int, count: int) -> list[Sent]:
    import hypothesis
    from hypothesis.errors import Unsatisfiable

    made: list[Sent] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(cases)
    def make(case: Any) -> None:
        made.append(_sent(case))

    with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request that has no fields
        make()
    return made


def fuzz_raw(port: int, seed: int, count: int) -> Outcome:
    """So many times broken bytes to a server that listens, whose answer may also be to close the connection (0)."""
    outcome = Outcome()
    for raw in broken(random.Random(seed), count):
        answer = exchange(port, raw, end=True)
        sent = Sent("RAW", "", raw)
        outcome.note(sent, Got(answer.status, {}, answer.body), "5xx" if answer.status >= 500 else None)
    return outcome


def _sent(case: Any) -> Sent:
    given = case.as_transport_kwargs(base_url="http://x")
    import requests

    ready = requests.Request(**{key: value for key, value in given.items() if key in REQUEST}).prepare()
    body = ready.body or b""
    headers = {str(name).lower(): _text(value) for name, value in ready.headers.items()}
    path = ready.url.removeprefix("http://x") if ready.url else "/"
    return Sent(ready.method or "GET", path, body.encode() if isinstance(body, str) else body, headers)


REQUEST = ("method", "url", "headers", "data", "json", "params", "files", "cookies")


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
