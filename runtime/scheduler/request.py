"""A request as the scheduler sees it (how long, how urgent), and the call that waits for the answers of several."""

from __future__ import annotations

import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from nopad.runtime.errors import NopadError

R = TypeVar("R")
Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")


@dataclass(frozen=True, kw_only=True, slots=True)
class Done(Generic[R]):
    """The result of one request, and where its time went."""

    value: R
    queued: float  # seconds from admission until its micro-batch ran
    ran: float  # seconds until its micro-batch, or the part of it that succeeded, was done
    batch_tokens: int  # of that micro-batch, or part


class Call(Generic[R]):
    """Requests that one caller submitted together: answered together, or failed together.

    `future` holds an outcome for each request, in the caller's order: its `Done`, or the error of this request alone.
    An error of the whole call (deadline, dead worker, closed) is the future's exception. To cancel the future is to
    say that the caller has gone: what has not run is dropped. Its callbacks run outside every lock of the scheduler.
    """

    def __init__(self, requests: int, *, deadline: float | None = None) -> None:
        self.future: Future[list[Done[R] | NopadError]] = Future()
        self.deadline = deadline  # by the scheduler's clock
        self._outcomes: list[Done[R] | NopadError | None] = [None] * requests
        self._missing = requests
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        """Whether nobody waits any more: answered, failed or cancelled."""
        return self.future.done()

    def answer(self, place: int, outcome: Done[R] | NopadError) -> None:
        """Put down the outcome of the request at `place`; the last one completes the future."""
        with self._lock:
            self._missing -= self._outcomes[place] is None
            self._outcomes[place] = outcome
            if self._missing:
                return
        with suppress(InvalidStateError):  # the caller has gone in this moment
            self.future.set_result([outcome for outcome in self._outcomes if outcome is not None])

    def fail(self, error: NopadError) -> None:
        """Fail the whole call at once; one that is over stays as it is."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """One item of a call. Equal only to itself."""

    payload: Any
    length: int  # tokens, at least 1
    priority: Priority
    arrived: float  # by the scheduler's clock, in seconds
    call: Call[Any]
    place: int  # among the requests of its call

    def expired(self, now: float) -> bool:
        """Whether its deadline has passed."""
        return self.call.deadline is not None and self.call.deadline <= now
