"""Every call into a served model: the one file of the server that knows how a `Model` is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nopad.runtime.batching import characters
from nopad.runtime.server.errors import Fault, fault_of
from nopad.runtime.server.registry import Models, Served, bundles_by_name
from nopad.runtime.types import Failure, Text

__all__ = ["Answered", "Models", "Reading", "Served", "answer", "bundles_by_name"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a request wants its texts read."""

    truncate: bool = True  # False refuses a text that is too long
    direction: str | None = None  # "left" or "right": the end that may be cut; None: the model's own
    prompt_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers to one request, and what its headers say."""

    served: Served
    answers: list[Any]  # of the task's type
    characters: int
    seconds: float
    # Of these, for the mean text: tokenizing, in the queue, in the engine.
    tokenizing: float
    queued: float
    running: float

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
) -> Answered:
    """Every text's answer, in order, or a `Fault`: a request is answered whole or not at all.

    `batch`: faults name the text that is to blame. `logits`: the answers of a classifier or reranker carry them.
    `top_k`: of a fill-mask model, candidates for each mask. `timeout`: seconds until the fault `deadline`.
    """
    for index, text in enumerate(texts):
        if "" in (text if isinstance(text, tuple) else (text,)):
            raise Fault("empty", "Input validation error: `inputs` cannot be empty", index=index if batch else None)
    started = time.monotonic()
    got = await served.model.aresults(
        texts, top_k=top_k, return_logits=logits, prompt_name=reading.prompt_name, timeout=timeout
    )
    seconds = time.monotonic() - started
    for index, one in enumerate(got.answers):
        place = index if batch else None
        if isinstance(one, Failure):
            raise fault_of(one.error, place)
        if one.truncated:
            _check_cut(served, one.tokens, reading, place)
    return Answered(
        served=served,
        answers=got.answers,
        characters=sum(map(characters, texts)),
        seconds=seconds,
        tokenizing=got.tokenizing,
        queued=got.queued,
        running=got.running,
    )


def _check_cut(served: Served, tokens: int, reading: Reading, index: int | None) -> None:
    """Refuse an answer to a text that was cut where the request forbids that, or wants it cut at the other end."""
    limit, side = served.model.manifest.max_length, served.encoder.truncation_side
    if not reading.truncate:
        said = f"Input validation error: `inputs` must have less than {limit + 1} tokens. Given: {tokens}"
        raise Fault("validation", said, index=index)
    if reading.direction is not None and reading.direction.lower() != side:
        said = f"this model cuts texts that are too long on the {side}; shorten the text, or leave truncation_direction"
        raise Fault("validation", said, index=index)
