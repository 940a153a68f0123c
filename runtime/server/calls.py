"""One request on its way through a route: which model, its answers, and the reply with its headers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import anyio
import orjson
from fastapi import Depends, Request, Response

from nopad.model.head import Task
from nopad.runtime.errors import DeadlineError
from nopad.runtime.explain.explaining import Asked
from nopad.runtime.scheduler.queue import Limits
from nopad.runtime.scheduler.request import PRIORITIES, Priority
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.forwards import Forwards
from nopad.runtime.server.metrics import Metrics
from nopad.runtime.server.models import Answered, Models, Reading, Served, answer, explain
from nopad.runtime.server.settings import Settings
from nopad.runtime.server.swap import Swaps
from nopad.runtime.server.tracing import open_tracing
from nopad.runtime.types import Text

DEFAULT_READING = Reading()
PRIORITY_HEADER = "x-nopad-priority"
TIMEOUT_HEADER = "x-request-timeout-ms"
# Requests for explanations that are worked on at once, and with those that wait for their turn; more get 429.
EXPLAINED_AT_ONCE, EXPLAINED_AND_WAITING = 2, 16
LONGEST_SECONDS = 1e9  # what timers of event loops can count
MILLISECONDS = re.compile("[1-9][0-9]{0,8}")


class Serving:
    """What the requests of one server share."""

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings = settings
        self.models = models
        self.metrics = Metrics(settings.metrics_names, settings.drift_window)
        self.forwards = Forwards(models)
        self.tracing = open_tracing(settings.otlp_endpoint)
        self.running = 0  # requests that are being answered, those included whose bodies are on their way
        self.explaining = 0  # of these, requests for explanations
        self.explaining_turn = asyncio.Semaphore(EXPLAINED_AT_ONCE)
        self.arriving = 0  # of these, how many those are
        self.arriving_bytes = 0  # which have been read of them
        self.draining = False
        self.swaps = Swaps(
            models,
            folders=settings.model_dirs,
            max_memory=settings.max_memory * 1_000_000 if settings.max_memory else None,
            workers=settings.workers,
            drain_seconds=settings.drain_seconds,
            stop=lambda: self.draining,
            observe=self.metrics.swapped,
        )

    @property
    def ready(self) -> bool:
        """Whether requests are answered now."""
        return len(self.models) > 0 and not self.draining

    def open(self, bundles: Mapping[str, Path | None], **options: Any) -> None:
        """Load and warm the models, with a bounded queue each, of which the metrics hear; `options` are `load`'s."""
        limits, stop = Limits(requests=self.settings.max_queue), lambda: self.draining
        anyio.run(anyio.lowlevel.checkpoint)  # its backend is imported when it is first used: not by the first request
        self.models.open(bundles, stop=stop, limits=limits, observer=self.metrics.scheduled, **options)

    def refresh_metrics(self) -> None:
        """Bring what is a state of now into the metrics."""
        self.metrics.refresh(self.models, self.running, self.ready)

    def require_healthy(self) -> None:
        """Raises the `Fault` of a server that is loading or draining, or whose engine fails or hangs."""
        self.require_ready()
        for served in self.models:
            self.require_responsive(served)
            if not served.healthy:
                raise Fault("unavailable", f"unhealthy: the engine of {served.name!r} fails")

    def require_responsive(self, served: Served) -> None:
        """Raises the `Fault` of an engine that has been in one micro-batch for too long."""
        if served.busy > self.settings.hang_seconds:
            raise Fault("unavailable", f"unhealthy: the engine of {served.name!r} hangs")

    def require_ready(self) -> None:
        """Raises the `Fault` of a server that is loading or draining."""
        if self.draining:
            raise Fault("unavailable", "the server is shutting down; ask another one")
        if not self.models:
            said = "no model is loaded" if self.models.loaded else "the model is still loading"
            raise Fault("unavailable", said)


class Texts(NamedTuple):
    """The texts of a request, and whether it is a batch, whose faults name the text that is to blame."""

    texts: Sequence[Text]
    batch: bool


class Call:
    """A request, as the routes take it: `call: Calling`."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.serving: Serving = request.app.state.serving

    def find(self, name: str | None, *tasks: Task) -> Served:
        """The model to ask, as `Models.find` chooses it."""
        return self.serving.models.find(name, *tasks)

    async def answer(
        self,
        served: Served,
        texts: Texts,
        reading: Reading = DEFAULT_READING,
        *,
        logits: bool = False,
        top_k: int | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        beside: int = 0,
        **wanted: Any,
    ) -> Answered:
        """The answers to all texts, or a `Fault`.

        `timeout` (seconds), `priority`: where the protocol has a field for them. `beside`: texts that do not count as
        the batch. `wanted`: what else `Model.aresults` takes.
        """
        self.request.state.batch = texts.batch
        self.check_size(len(texts.texts) - beside)
        self.serving.require_responsive(served)
        self.serving.metrics.asked(served.model.task, len(texts.texts))
        answered = await answer(
            served,
            texts.texts,
            batch=texts.batch,
            reading=reading,
            logits=logits,
            top_k=top_k,
            timeout=self._left(timeout or self._timeout()),
            priority=priority or self._priority(),
            **wanted,
        )
        self.request.state.answered = answered
        return answered

    async def explain(self, served: Served, texts: Texts, asked: Asked, reading: Reading) -> Answered:
        """The explanations of all texts, or a `Fault`; also where too many requests for explanations are there."""
        self.request.state.batch = texts.batch
        self.check_size(len(texts.texts))
        self.serving.require_responsive(served)
        serving, started, timeout = self.serving, time.monotonic(), self._left(self._timeout())
        if serving.explaining >= EXPLAINED_AND_WAITING:
            raise Fault("overloaded", f"{EXPLAINED_AND_WAITING} requests for explanations are there: try again later")
        serving.metrics.asked(served.model.task, len(texts.texts))
        serving.explaining += 1
        try:
            async with asyncio.timeout(timeout), serving.explaining_turn:
                left = None if timeout is None else timeout - (time.monotonic() - started)
                most, batch = serving.settings.max_explain, texts.batch
                answered = await explain(
                    served, texts.texts, asked, batch=batch, reading=reading, most=most, timeout=left
                )
        except TimeoutError:
            raise DeadlineError("the deadline passed before the explanation was there") from None
        finally:
            serving.explaining -= 1
        self.request.state.answered = answered
        return answered

    def check_size(self, count: int) -> None:
        """Raises a `Fault` for no texts, or more than one request may have."""
        if count == 0:
            raise Fault("empty", "`inputs` cannot be empty")
        most = self.serving.settings.max_batch
        if count > most:
            raise Fault("batch_size", f"batch size {count} > maximum allowed batch size {most}")

    def _left(self, timeout: float | None) -> float | None:
        """Of a request's time, what its body and the server have left of it."""
        if timeout is None:
            return None
        return min(timeout, LONGEST_SECONDS) - (time.monotonic() - self.request.state.arrived)

    def _timeout(self) -> float | None:
        given = self.request.headers.get(TIMEOUT_HEADER)
        if given is None:
            return self.serving.settings.timeout
        if not MILLISECONDS.fullmatch(given):
            raise Fault("validation", f"{TIMEOUT_HEADER} must be a positive whole number of milliseconds")
        return int(given) / 1000

    def _priority(self) -> Priority:
        given = self.request.headers.get(PRIORITY_HEADER, PRIORITIES[0])
        for priority in PRIORITIES:
            if given == priority:
                return priority
        raise Fault("validation", f"{PRIORITY_HEADER} is {' or '.join(PRIORITIES)}")


def priority_of(rank: int | None, highest: int) -> Priority | None:
    """A number by which clients say who goes first, `highest` before larger ones; None and 0 say nothing of it."""
    if not rank:
        return None
    return "interactive" if rank <= highest else "batch"


async def _call(request: Request) -> Call:
    # FastAPI makes what is no coroutine in a thread, of which a busy server has none to spare.
    return Call(request)


Calling = Annotated[Call, Depends(_call)]


def to_json(body: Any) -> bytes:
    """JSON as bytes; arrays of float32 have as few digits as tell them apart.

    NaN and infinity, which JSON cannot say, are the engine's fault.
    """
    try:
        text = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        if b"null" not in text:
            return text
    except orjson.JSONEncodeError:  # half a surrogate pair, of a client's text
        pass
    try:  # orjson writes NaN as null
        plain = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_listed)
    except ValueError:
        raise Fault("engine", "Backend error: score is NaN or infinite") from None
    return plain.encode("utf-8", "backslashreplace")


def _listed(array: Any) -> Any:
    return array.tolist()


def reply(body: Any, answered: Answered | None = None) -> Response:
    """A body as JSON, with the headers of the answers in it."""
    headers = {} if answered is None else headers_of(answered)
    return Response(to_json(body), media_type="application/json", headers=headers)


def headers_of(answered: Answered) -> dict[str, str]:
    """TEI's headers, with the times of the mean text, and ours: who answered, and how many texts were cut."""
    first = answered.answers[0]
    milliseconds = _milliseconds(answered.seconds)
    return {
        "x-compute-type": "gpu+optimized",  # TEI's constant
        "x-compute-time": milliseconds,
        "x-total-time": milliseconds,
        "x-tokenization-time": _milliseconds(answered.tokenizing),
        "x-queue-time": _milliseconds(answered.queued),
        "x-inference-time": _milliseconds(answered.running),
        "x-compute-characters": str(answered.characters),
        "x-compute-tokens": str(answered.tokens),
        "x-nopad-engine": first.engine,
        "x-nopad-precision": first.precision,
        "x-nopad-version": str(answered.served.version),
        "x-nopad-truncated": str(answered.truncated),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
