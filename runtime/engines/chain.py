"""The fallback chain: the first engine that can run answers; a batch that it fails on goes to the next one.

An engine that cannot run is refused at load with a reason (package, GPU, file, parity, or a self-check that gives zeros
or NaN). An engine that fails `FAILURES` times in a row rests for `RETRY_SECONDS`; it must then pass the self-check, if
need be after reopening, before it gets a user's batch again. Knows no model and no particular engine. May be used from
several threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from nopad.model.errors import NopadError
from nopad.model.packing import PackedBatch
from nopad.runtime.engines.base import Engine
from nopad.runtime.errors import EngineError, EnvironmentProblem, IntegrityError, ShapeError
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import AnsweredBy, FloatArray

FAILURES = 3
RETRY_SECONDS = 30.0
State = Literal["ready", "waiting", "resting", "refused"]
log = logging.getLogger("nopad")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine that may answer, and how to open it."""

    name: str
    artifact: Artifact
    open: Callable[[], Engine]

    def __str__(self) -> str:
        return f"engine {self.name} ({self.artifact.precision})"


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """State and counts of one engine."""

    name: str
    file: str
    precision: str  # of the file
    state: State  # ready; waiting: opened when needed; resting after failures; refused: cannot run here
    batches: int  # answered
    failures: int  # batches that it failed on
    reason: str | None  # of the last failure or refusal


@dataclass(frozen=True, kw_only=True)
class ChainStatus:
    """State of the whole chain. `degraded`: another engine than that chosen at load has answered a batch."""

    engine: str
    degraded: bool
    engines: tuple[EngineStatus, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Logits as the engine returned them, and whose they are."""

    logits: FloatArray
    by: AnsweredBy


class _RestingError(EngineError):
    """The engine rests now, because it failed repeatedly."""


@dataclass(kw_only=True)
class _Link:
    candidate: Candidate
    lock: threading.Lock = field(default_factory=threading.Lock)
    engine: Engine | None = None
    refused: bool = False
    batches: int = 0
    failures: int = 0
    in_a_row: int = 0
    rests_until: float | None = None
    reason: str | None = None


class EngineChain:
    """The opened chain; `profiles` and `token_budget` are the chosen engine's.

    Raises `EnvironmentProblem`, with an `ExceptionGroup` of all reasons, if no engine can run; `IntegrityError` if a
    file that comes before the first sound engine is damaged.
    """

    profiles: tuple[ShapeProfile, ...]
    token_budget: int

    def __init__(
        self,
        candidates: Sequence[Candidate],
        probe: PackedBatch,
        *,
        fallback: bool = True,
        failures: int = FAILURES,
        retry_seconds: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._links = [_Link(candidate=candidate) for candidate in candidates]
        self._probe = probe
        self._failures = failures
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._degraded = False
        self._closed = False
        causes: list[Exception] = []
        for link in self._links:
            try:
                engine = self._open(link)
            except IntegrityError:  # a damaged bundle is not served by what is left of it
                raise
            except NopadError as error:
                causes.append(error)
                continue
            self._chosen, self.profiles, self.token_budget = link, engine.profiles, engine.token_budget
            if not fallback:
                self._links = [link]
            return
        if len(causes) == 1:
            raise causes[0]
        reasons = "; ".join(f"{link.candidate.name}: {link.reason}" for link in self._links)
        raise EnvironmentProblem(f"no engine can run here: {reasons}") from ExceptionGroup("no engine", causes)

    @property
    def chosen(self) -> Candidate:
        """The engine that was chosen at load."""
        return self._chosen.candidate

    @property
    def engine(self) -> Engine | None:
        """The engine that was chosen at load; None while it is not open."""
        return self._chosen.engine

    @property
    def threads(self) -> int | None:
        """CPU threads that the chosen engine reports now; None if it reports none."""
        engine = self._chosen.engine
        return engine.threads if engine is not None else None

    def run(self, batch: PackedBatch) -> Answer:
        """Logits of a batch from the first engine whose logits are sound.

        Raises `EngineError`: that of the only engine, else a new error with an `ExceptionGroup` of all reasons.
        """
        causes: list[Exception] = []
        for link in self._links:
            if link.refused:
                continue
            try:
                engine = self._ready(link)
                logits = _sound_logits(engine, batch)
            except _RestingError as error:
                causes.append(error)
            except ShapeError as error:  # not a failure of the engine
                causes.append(error)
                with link.lock:
                    link.failures += 1
                    link.reason = str(error)
            except NopadError as error:
                causes.append(error)
                self._note_failure(link, error)
            else:
                with link.lock:
                    link.batches += 1
                    link.in_a_row = 0
                if link is not self._chosen:
                    self._degraded = True
                return Answer(logits=logits, by=AnsweredBy(engine.name, link.candidate.artifact.precision))
        if len(causes) == 1:
            raise causes[0]
        reasons = "; ".join(str(cause) for cause in causes)
        raise EngineError(f"every engine failed: {reasons}") from ExceptionGroup("every engine failed", causes)

    def status(self) -> ChainStatus:
        """Which engine was chosen, and the state of each engine."""
        return ChainStatus(
            engine=self.chosen.name, degraded=self._degraded, engines=tuple(self._status(link) for link in self._links)
        )

    def close(self) -> None:
        """Close every engine; a second call does nothing."""
        self._closed = True
        for link in self._links:
            with link.lock:
                if link.engine is not None:
                    link.engine.close()
                link.engine = None

    def _status(self, link: _Link) -> EngineStatus:
        with link.lock:
            state: State = "refused" if link.refused else "ready" if link.engine is not None else "waiting"
            if link.rests_until is not None:
                state = "resting"
            return EngineStatus(
                name=link.candidate.name,
                file=link.candidate.artifact.file,
                precision=link.candidate.artifact.precision,
                state=state,
                batches=link.batches,
                failures=link.failures,
                reason=link.reason,
            )

    def _open(self, link: _Link) -> Engine:
        """Open and check an engine; a failure refuses it for good."""
        with link.lock:
            if self._closed:
                raise EngineError("the model is closed")
            if link.refused:
                raise EnvironmentProblem(link.reason or "refused")
            if link.engine is None:
                try:
                    link.engine = self._open_and_check(link)
                except NopadError as error:
                    link.refused, link.reason = True, str(error)
                    log.info("engine %s refused: %s", link.candidate.name, error)
                    raise
            return link.engine

    def _open_and_check(self, link: _Link) -> Engine:
        engine = link.candidate.open()
        try:
            _sound_logits(engine, self._probe)
        except EngineError as error:
            engine.close()
            raise EnvironmentProblem(f"engine {engine.name} failed its self-check: {error}") from error
        except BaseException:
            engine.close()
            raise
        return engine

    def _ready(self, link: _Link) -> Engine:
        """The opened engine. Raises `EngineError` while it rests, or if it fails the self-check after its rest."""
        with link.lock:
            resting = link.rests_until
            if resting is not None and self._clock() < resting:
                raise _RestingError(f"engine {link.candidate.name} rests after repeated failures: {link.reason}")
            if resting is None and link.engine is not None:
                return link.engine
            if resting is not None:
                link.rests_until = self._clock() + self._retry_seconds  # others do not wait for this probe
        if resting is None:
            return self._open(link)
        return self._reprobe(link)

    def _reprobe(self, link: _Link) -> Engine:
        with link.lock:
            engine, link.engine = link.engine, None  # no other thread may use it until it is sound
        try:
            if engine is not None:
                try:
                    _sound_logits(engine, self._probe)
                except EngineError:  # after some CUDA errors every call fails: only a new engine can help
                    engine.close()
                    engine = None
            engine = engine or self._open_and_check(link)
        except NopadError as error:
            with link.lock:
                link.reason = str(error)
            raise _RestingError(f"engine {link.candidate.name} is still failing: {error}") from error
        with link.lock:
            if self._closed:
                engine.close()
                raise EngineError("the model is closed")
            link.engine, link.rests_until, link.in_a_row = engine, None, 0
        log.warning("engine %s is back", link.candidate.name)
        return engine

    def _note_failure(self, link: _Link, error: Exception) -> None:
        with link.lock:
            link.failures += 1
            if link.rests_until is not None or link.refused:
                return
            link.reason = str(error)
            link.in_a_row += 1
            log.warning("%s failed on a batch, the next engine answers it: %s", link.candidate, error)
            others = any(not other.refused for other in self._links if other is not link)
            if link.in_a_row >= self._failures and others:
                link.rests_until = self._clock() + self._retry_seconds
                log.warning("engine %s failed %d times in a row and rests", link.candidate.name, link.in_a_row)


def _sound_logits(engine: Engine, batch: PackedBatch) -> FloatArray:
    """Run a batch. Raises `EngineError` also for logits that are NaN, infinite or all zero."""
    try:
        logits = engine.run(batch)
    except NopadError:
        raise
    except Exception as error:  # an exception of a library that the engine has not translated
        raise EngineError(f"engine {engine.name} failed: {type(error).__name__}: {error}") from error
    rows = logits if len(logits) == len(batch.lengths) else logits[: batch.num_tokens]
    if not np.isfinite(rows).all():
        raise EngineError(f"engine {engine.name} answered NaN or infinity on {batch.num_tokens} tokens")
    if not rows.any():
        raise EngineError(f"engine {engine.name} answered nothing but zeros on {batch.num_tokens} tokens")
    return logits
