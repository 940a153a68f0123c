"""Every call into a served model: the one file of the server that knows how a `Model` is asked."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nopad.runtime import answering
from nopad.runtime.batching import characters
from nopad.runtime.errors import TooLongError
from nopad.runtime.explain.explaining import Asked
from nopad.runtime.server.errors import Fault, fault_of
from nopad.runtime.server.registry import Models, Served, bundles_by_name
from nopad.runtime.types import Failure, Merge, Text, Truncation

__all__ = ["Answered", "Models", "Reading", "Served", "answer", "bundles_by_name", "explain"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a request wants its texts read."""

    truncate: bool = True  # False refuses a text that is too long, unless `truncation` says what becomes of it
    direction: str | None = None  # "left" or "right", in any case: the end that may be cut; None: the model's own
    prompt_name: str | None = None
    truncation: Truncation | None = None
    stride: int | None = None  # of windows, as `merge`
    merge: Merge | None = None

    def options(self) -> dict[str, Any]:
        """The same for `Model.aresults`."""
        truncation = self.truncation or (None if self.truncate else "error")
        return {
            "prompt_name": self.prompt_name,
            "truncation": truncation,
            "truncation_side": self.direction.lower() if self.direction and truncation in (None, "truncate") else None,
            "stride": self.stride,
            "merge": self.merge,
        }


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers to one request, and what its headers say."""

    served: Served
    answers: list[Any]  # of the task's type
    characters: int
    started: float  # by the monotonic clock
    seconds: float
    # Of these, for the mean text: tokenizing, in the queue, in the engine.
    tokenizing: float
    queued: float
    running: float
    batch_tokens: int  # of the largest micro-batch that one of them ran in

    @property
    def tokens(self) -> int:
        """Tokens that reached the model, special tokens included."""
        return sum(answer.tokens_used for answer in self.answers)

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return sum(answer.truncated for answer in self.answers)


async def answer(
    served: Served,
    texts: Sequence[Text],
    *,
    batch: bool,
    reading: Reading,
    logits: bool = False,
    top_k: int | None = None,
    timeout: float | None = None,
    **wanted: Any,
) -> Answered:
    """Every text's answer, in order, or a `Fault`: a request is answered whole or not at all. The model counts it.

    `batch`: faults name the text that is to blame. `logits`: the answers of a classifier or reranker carry them.
    `top_k`: of a fill-mask model, candidates for each mask. `timeout`: seconds until the fault `deadline`.
    `wanted`: what else `Model.aresults` takes.
    """

    def ask() -> Awaitable[answering.Answered[Any]]:
        options = {**reading.options(), **wanted}
        return served.model.aresults(
            texts, top_k=top_k, return_logits=logits, timeout=timeout, all_or_none=True, **options
        )

    return await _counted(served, texts, batch, ask)


async def explain(
    served: Served,
    texts: Sequence[Text],
    asked: Asked,
    *,
    batch: bool,
    reading: Reading,
    most: int,
    timeout: float | None = None,
) -> Answered:
    """Every text's explanation, as `answer`, behind whatever is interactive. `most`: tokens of all that is run."""

    def ask() -> Awaitable[answering.Answered[Any]]:
        options = reading.options()
        del options["prompt_name"]  # explanations are of the default prompt
        return served.model.explainer(asked, timeout=timeout, **options).answer(texts, most)

    return await _counted(served, texts, batch, ask)


async def _counted(
    served: Served, texts: Sequence[Text], batch: bool, ask: Callable[[], Awaitable[answering.Answered[Any]]]
) -> Answered:
    for index, text in enumerate(texts):
        if "" in (text if isinstance(text, tuple) else (text,)):
            raise Fault("empty", "Input validation error: `inputs` cannot be empty", index=index if batch else None)
    started = time.monotonic()
    try:
        got = await ask()
        seconds = time.monotonic() - started
        for one in got.answers:
            if isinstance(one, Failure):
                raise _fault_of_text(one.error, one.index if batch else None, served.model.manifest.max_length)
    except Exception:
        served.statistics.failed(time.monotonic() - started)
        raise
    served.statistics.answered(len(texts), seconds, tokenizing=got.tokenizing, queued=got.queued, running=got.running)
    return Answered(
        served=served,
        answers=got.answers,
        characters=sum(map(characters, texts)),
        started=started,
        seconds=seconds,
        tokenizing=got.tokenizing,
        queued=got.queued,
        running=got.running,
        batch_tokens=got.batch_tokens,
    )


def _fault_of_text(error: Exception, index: int | None, limit: int) -> Fault:
    if not isinstance(error, TooLongError):
        return fault_of(error, index)
    said = f"Input validation error: `inputs` must have less than {limit + 1} tokens. Given: {error.tokens}"
    return Fault("validation", said, index=index)
