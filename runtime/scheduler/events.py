"""What an observer of the scheduler is told. Metrics are made from these; the scheduler knows no metrics library."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nopad.runtime.scheduler.request import Priority

log = logging.getLogger("nopad")


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A call was queued."""

    requests: int
    tokens: int
    priority: Priority


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A call was not queued, because it would have exceeded the limits."""

    requests: int
    tokens: int
    priority: Priority
    retry_after: float  # seconds


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Requests left the queue without having been run: their callers had gone, or their deadlines had passed."""

    requests: int
    tokens: int
    reason: Literal["gone", "deadline"]


@dataclass(frozen=True, kw_only=True)
class BatchRun:
    """A micro-batch was run."""

    requests: int
    failed: int  # requests of it that were answered with an error
    tokens: int
    longest: int  # tokens of the longest request
    seconds: float
    waited: tuple[float, ...]  # of each request, seconds in the queue

    @property
    def padding_saved(self) -> int:
        """Tokens that a server would have computed for nothing, had it padded this micro-batch to its longest text."""
        return self.requests * self.longest - self.tokens


@dataclass(frozen=True, kw_only=True)
class WorkerDied:
    """Something other than an `Exception` ended the worker; another one has been started."""

    cause: BaseException
    requests: int  # whose calls failed


Event = Admitted | Refused | Dropped | BatchRun | WorkerDied
Observer = Callable[[Event], None]


def tell(observer: Observer | None, event: Event) -> None:
    """Call the observer. What it raises is logged and harms nobody."""
    if observer is None:
        return
    try:
        observer(event)
    except BaseException:
        log.exception("an observer of the scheduler failed on %s", type(event).__name__)
