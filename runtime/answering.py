"""Texts -> answers for many callers at once: encoded and decoded in the caller's thread, run in the scheduler's.

So one caller's texts are tokenized while another's micro-batch runs. Coroutines hand long texts to a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, ParamSpec, TypeVar

from nopad.runtime.batching import characters, windows
from nopad.runtime.errors import DeadlineError, NopadError, TextError
from nopad.runtime.inference import TRUNCATED, Decoder, Inference, Piece, collect, listed, pieces
from nopad.runtime.scheduler.events import Observer
from nopad.runtime.scheduler.queue import Limits
from nopad.runtime.scheduler.request import Call, Done, Priority
from nopad.runtime.scheduler.scheduler import Scheduler
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import AnsweredBy, Failure, FloatArray, LongTexts, Text

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
# Micro-batches of a call of `arun` that wait or run at once: enough to pack well, and the queue keeps room for others.
BATCHES_AT_ONCE = 4
# Texts of so many characters in all are tokenized in the event loop: in less time than another thread needs to begin.
INLINE_CHARACTERS = 1_000


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a call wants its texts answered."""

    prompt: str = ""
    long: LongTexts = TRUNCATED
    timeout: float | None = None  # seconds for the whole call; where texts come from an iterator, for each window
    priority: Priority = "interactive"


@dataclass(frozen=True, kw_only=True)
class Answered(Generic[R]):
    """The answers of a call, and where its time went: seconds, of its texts the mean."""

    answers: list[R | Failure]
    tokenizing: float
    queued: float
    running: float
    batch_tokens: int = 0  # of the largest micro-batch that one of them ran in


class Answering:
    """An `Inference` behind a scheduler. May be used from any thread and any event loop."""

    def __init__(self, inference: Inference, limits: Limits | None = None, observer: Observer | None = None) -> None:
        self.inference = inference
        # The scheduler's thread knows nothing of `self`, so that it ends when nobody else does.
        self.scheduler: Scheduler[Piece, Any] = Scheduler(
            inference.run_pieces,
            inference.planner.plan,
            limits,
            observer=observer,
            probe=inference.probe,
        )

    def stream(self, texts: Iterable[Text], decoder: Decoder[R], asking: Asking) -> Iterator[R | Failure]:
        """Each text's answer in order, lazily, a window at a time; a `Failure` where there is none.

        A window is admitted whatever the limits of the queue: who waits for it asks for nothing more meanwhile.
        Raises `DeadlineError`, `DrainingError`, and `EngineError` if the scheduler's thread died over it.
        """
        if self.scheduler.in_worker():  # which would wait for itself
            yield from self.inference.answers(texts, decoder, asking.prompt, asking.long)
            return
        started, start = time.monotonic(), 0
        for window in windows(listed(texts), lambda text: text):
            if not isinstance(texts, Sequence):
                started = time.monotonic()
            self.inference.require_open()
            encoded = self.inference.encode(window, asking.prompt, asking.long)
            parts = pieces(encoded, decoder)
            call = self.scheduler.submit(
                parts,
                [part.tokens.used for part in parts],
                priority=asking.priority,
                timeout=_left(asking, started),
                bounded=False,
            )
            results = map(_result, self.scheduler.wait(call))
            yield from collect(encoded, self.inference.finish(encoded, results, decoder, asking.long.merge), start)
            start += len(window)

    async def answer(
        self, texts: Iterable[Text], decoder: Decoder[R], asking: Asking, *, whole: bool = False
    ) -> Answered[R]:
        """The texts' answers; all of them are admitted together, within the limits of the queue, or none.

        `whole`: where a text cannot be read, nothing is queued, and the answers are its `Failure` and those like it.
        Raises as `stream` does, and `OverloadedError`.
        """
        try:
            # The scheduler holds the deadline only while it has the texts: they also wait for threads.
            async with asyncio.timeout(asking.timeout):
                return await self._answer(texts, decoder, asking, whole)
        except TimeoutError:
            raise DeadlineError("the deadline passed before the answer was there") from None

    async def _answer(self, texts: Iterable[Text], decoder: Decoder[R], asking: Asking, whole: bool) -> Answered[R]:
        started = time.monotonic()
        self.inference.require_open()
        cut = list(windows(listed(texts), lambda text: text))
        short = len(cut) <= 1 and sum(characters(text) for window in cut for text in window) <= INLINE_CHARACTERS
        encoded: list[Tokens | TextError] = []
        for window in cut:
            encoded += await _elsewhere(short, self.inference.encode, window, asking.prompt, asking.long)
        tokenized = time.monotonic()
        bad = [Failure(index=i, error=text) for i, text in enumerate(encoded) if isinstance(text, TextError)]
        if whole and bad:
            return Answered(answers=[*bad], tokenizing=tokenized - started, queued=0.0, running=0.0)
        parts = pieces(encoded, decoder)
        call = self.scheduler.submit(
            parts, [part.tokens.used for part in parts], priority=asking.priority, timeout=_left(asking, started)
        )
        outcomes = await self.scheduler.awaited(call)
        finished = self.inference.finish(encoded, map(_result, outcomes), decoder, asking.long.merge)
        # A thread may be long in coming where others tokenize; only tags of many tokens are worth the wait.
        here = short or self.inference.manifest.task != "token-classification"
        answers = await _elsewhere(here, list, collect(encoded, finished, 0))
        done = [outcome for outcome in outcomes if isinstance(outcome, Done)]
        return Answered(
            answers=answers,
            tokenizing=tokenized - started,
            queued=sum(each.queued for each in done) / max(1, len(done)),
            running=sum(each.ran for each in done) / max(1, len(done)),
            batch_tokens=max((each.batch_tokens for each in done), default=0),
        )

    def run(self, texts: Sequence[Tokens], asking: Asking) -> list[tuple[FloatArray, AnsweredBy]]:
        """Logits of token ids, each run as one text beside those of other callers, and whose they are; in order.

        For a model whose answers are decoded from logits, so not for fill-mask. Raises as `stream`, and the first
        error of any text.
        """
        self.inference.require_open()
        parts = [Piece(tokens, _undecoded) for tokens in texts]
        if self.scheduler.in_worker():  # which would wait for itself
            return _sound(self.inference.run_all(parts))
        return _sound(map(_result, self.scheduler.wait(self._submit(parts, asking, bounded=False))))

    async def arun(self, texts: Sequence[Tokens], asking: Asking) -> list[Done[tuple[FloatArray, AnsweredBy]]]:
        """`run` for coroutines, some micro-batches after the other, with when each text was run.

        Only the first of them need room in the queue; raises `OverloadedError`, too.
        """
        self.inference.require_open()
        started, done = time.monotonic(), list[Any]()
        for group in _groups(texts, BATCHES_AT_ONCE * self.inference.planner.token_budget):
            call = self._submit(group, replace(asking, timeout=_left(asking, started)), bounded=not done)
            outcomes = await self.scheduler.awaited(call)
            _sound(map(_result, outcomes))
            done += outcomes
        return done

    def _submit(self, parts: Sequence[Piece], asking: Asking, *, bounded: bool) -> Call[Any]:
        lengths = [part.tokens.used for part in parts]
        return self.scheduler.submit(parts, lengths, priority=asking.priority, timeout=asking.timeout, bounded=bounded)

    def close(self) -> None:
        """Fail whoever waits, and release the engines."""
        self.scheduler.close()
        self.inference.close()


def _result(outcome: Done[Any] | NopadError) -> Any:
    return outcome.value if isinstance(outcome, Done) else outcome


def _undecoded(logits: FloatArray, tokens: Tokens, by: AnsweredBy) -> FloatArray:
    return logits


def _sound(results: Iterable[Any]) -> list[tuple[FloatArray, AnsweredBy]]:
    found = list(results)
    for each in found:
        if isinstance(each, NopadError):
            raise each
    return found


def _groups(texts: Sequence[Tokens], most: int) -> Iterator[list[Piece]]:
    """The texts as pieces to be run, in order, in groups of at most so many tokens, or of one text."""
    group: list[Piece] = []
    held = 0
    for tokens in texts:
        if group and held + tokens.used > most:
            yield group
            group, held = [], 0
        group.append(Piece(tokens, _undecoded))
        held += tokens.used
    yield group


def _left(asking: Asking, started: float) -> float | None:
    return None if asking.timeout is None else started + asking.timeout - time.monotonic()


async def _elsewhere(here: bool, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do the work in another thread, or here."""
    return work(*args, **kwargs) if here else await asyncio.to_thread(work, *args, **kwargs)
