"""Who waits, and which micro-batch is next: pure logic without threads, with the time handed in.

Requests of one priority form a lane. A micro-batch is of one lane: the lane's oldest `WINDOW` requests are planned by
length, and of this plan the micro-batch is taken that holds the request with the earliest deadline or, where none has
one, the oldest. What nobody can be passed over more often than:

- the oldest request of a lane: `PASSED_OVER` micro-batches of its lane in a row;
- the lane of priority `batch`, where it has requests: `PASSED_OVER` micro-batches of interactive requests in a row.

So a request with n older ones in its lane runs within `(PASSED_OVER + 1) ** 2 * (n + 1)` micro-batches, whatever
arrives after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nopad.runtime.batching import WINDOW
from nopad.runtime.errors import OverloadedError, UsageError
from nopad.runtime.scheduler.request import PRIORITIES, Priority, Request

PASSED_OVER = 4
FORGET = 0.9  # the weight of the past in the measured rate, at each micro-batch
UNMEASURED_RETRY_SECONDS = 1.0  # before the first micro-batch
PROMISED = (
    0.8  # the most of the time until a deadline that the wait may take by the measured rate; the rest is for error
)
Plan = Callable[[Sequence[int]], list[list[int]]]  # token lengths -> micro-batches, indices into them, each once


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that may wait. A token costs about 200 bytes, with its offsets and its piece of text."""

    requests: int = 8_192
    tokens: int = 524_288


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The next micro-batch, and what left the queue without an answer on the way to it."""

    batch: list[Request]  # in the plan's order; [] if nothing waits
    dropped: list[Request]  # gone or expired


class Queue:
    """Waiting requests. Not safe across threads: its owner has the lock."""

    def __init__(self, plan: Plan, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0  # waiting
        self.tokens = 0  # of those
        self._lanes: dict[Priority, _Lane] = {priority: _Lane(plan) for priority in PRIORITIES}
        self._passed = 0  # micro-batches since one was of the `batch` lane, while that had requests
        self._run_tokens = self._run_seconds = 0.0

    def has_room(self, requests: Sequence[Request]) -> bool:
        """Whether all of them may be admitted now."""
        return self.requests + len(requests) <= self.limits.requests and (
            self.tokens + _tokens(requests) <= self.limits.tokens
        )

    def admit(self, requests: Sequence[Request], *, bounded: bool = True) -> None:
        """Queue all of the requests, which are of one call and arrive now, or none of them.

        `bounded` False admits them whatever the limits. Raises `OverloadedError` if they have no room now, or if they
        would, at the measured rate, be late for their deadline; `UsageError` if they have no room even in an empty
        queue.
        """
        if not requests:
            return
        if bounded and not self.has_room(requests):
            count, tokens, limits = len(requests), _tokens(requests), self.limits
            if count > limits.requests or tokens > limits.tokens:
                raise UsageError(
                    f"{count} texts with {tokens} tokens are more than may ever wait ({limits.requests} texts, "
                    f"{limits.tokens} tokens): send fewer at once, or load with larger limits"
                )
            raise OverloadedError(
                f"{self.requests} texts with {self.tokens} tokens wait, and there is no room for {count} more with "
                f"{tokens} tokens ({limits.requests} texts, {limits.tokens} tokens may wait): try again later",
                retry_after=self.retry_after(),
            )
        if bounded:
            self._refuse_the_late(requests)
        self._lanes[requests[0].priority].backlog.extend(requests)
        self._count(requests, 1)

    def _refuse_the_late(self, requests: Sequence[Request]) -> None:
        first = requests[0]
        deadline, own = first.call.deadline, _tokens(requests)
        # What goes first is at most all that waits: mostly that is soon enough, and nothing must be counted.
        if deadline is None or self._seconds(self.tokens + own) <= PROMISED * (deadline - first.arrived):
            return
        # Of its own lane whatever is due no later: the rest goes after it, but for a bounded number of times.
        lane = self._lanes[first.priority]
        due = [r for r in (*lane.window, *lane.backlog) if r.call.deadline is not None and r.call.deadline <= deadline]
        wait, left = self._seconds(_tokens(due) + own), deadline - first.arrived
        # A call that would be late even alone is let in: the rate may have been measured in a bad moment.
        if due and wait > PROMISED * left:
            raise OverloadedError(
                f"{len(due)} texts wait that are due before this one, {wait:.3g} s of work; its deadline is in "
                f"{left:.3g} s: try again later, or give it more time",
                retry_after=wait - PROMISED * left,
            )

    def take(self, now: float) -> Taken:
        """Remove the next micro-batch from the queue, and of its lane's window everything gone or expired."""
        dropped: list[Request] = []
        while (lane := self._next_lane()) is not None:
            dropped += lane.sweep_window(now)
            if lane.window:
                batch = lane.take()
                self._count(batch, -1)
                break
        else:
            batch = []
        self._count(dropped, -1)
        return Taken(batch=batch, dropped=dropped)

    def sweep(self, now: float) -> list[Request]:
        """Remove everything that is gone or expired: O(requests)."""
        dropped = [request for lane in self._lanes.values() for request in lane.sweep(now)]
        self._count(dropped, -1)
        return dropped

    def clear(self) -> list[Request]:
        """Remove everything."""
        everything = [request for lane in self._lanes.values() for request in (*lane.window, *lane.backlog)]
        self._lanes = {priority: _Lane(lane.plan) for priority, lane in self._lanes.items()}
        self.requests = self.tokens = 0
        return everything

    def note_run(self, tokens: int, seconds: float) -> None:
        """Take a finished micro-batch into the measured rate."""
        self._run_tokens = FORGET * self._run_tokens + tokens
        self._run_seconds = FORGET * self._run_seconds + seconds

    def retry_after(self) -> float:
        """Seconds in which the waiting tokens will have been run, at the measured rate."""
        return self._seconds(self.tokens) if self._run_seconds else UNMEASURED_RETRY_SECONDS

    def _seconds(self, tokens: int) -> float:
        """How long the tokens run at the measured rate; 0 before the first micro-batch."""
        return tokens * self._run_seconds / self._run_tokens if self._run_seconds else 0.0

    def _next_lane(self) -> _Lane | None:
        interactive, batch = (self._lanes[priority] for priority in PRIORITIES)
        if not batch.waits:
            return interactive if interactive.waits else None
        if interactive.waits and self._passed < PASSED_OVER:
            self._passed += 1
            return interactive
        self._passed = 0
        return batch

    def _count(self, requests: Sequence[Request], sign: int) -> None:
        self.requests += sign * len(requests)
        self.tokens += sign * _tokens(requests)


class _Lane:
    """Requests of one priority: the oldest in the window, those after them in the backlog, both by arrival."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.window: list[Request] = []
        self.backlog: deque[Request] = deque()
        self._planned: list[list[Request]] = []  # the window as micro-batches; [] where it must be planned again
        self._passed = 0  # micro-batches since one held the oldest

    @property
    def waits(self) -> bool:
        return bool(self.window or self.backlog)

    def sweep_window(self, now: float) -> list[Request]:
        """Fill the window, then remove what is gone or expired."""
        # A full backlog would have the window planned again for every micro-batch: it is let in by halves.
        if self.backlog and (len(self.window) <= WINDOW // 2 or len(self.window) + len(self.backlog) <= WINDOW):
            for _ in range(min(len(self.backlog), WINDOW - len(self.window))):
                self.window.append(self.backlog.popleft())
            self._planned = []
        self.window, dropped = _split(self.window, now)
        if dropped:
            self._planned = []
        return dropped

    def sweep(self, now: float) -> list[Request]:
        kept, dropped = _split(self.backlog, now)
        self.backlog = deque(kept)
        return self.sweep_window(now) + dropped

    def take(self) -> list[Request]:
        """Remove the next micro-batch from the window, which is not empty."""
        if not self._planned:
            plan = self.plan([request.length for request in self.window])
            self._planned = [[self.window[i] for i in batch] for batch in plan]
        oldest = first = self.window[0]
        if self._passed < PASSED_OVER:
            dated = (request for request in self.window if request.call.deadline is not None)
            first = min(dated, key=lambda request: request.call.deadline or 0.0, default=oldest)
        number = next(number for number, batch in enumerate(self._planned) if first in batch)
        batch = self._planned.pop(number)
        self._passed = 0 if oldest in batch else self._passed + 1
        taken = set(batch)
        self.window = [request for request in self.window if request not in taken]
        return batch


def _split(requests: Iterable[Request], now: float) -> tuple[list[Request], list[Request]]:
    """Those that are still wanted, and those that are gone or expired."""
    kept: list[Request] = []
    dropped: list[Request] = []
    for request in requests:
        (dropped if request.call.over or request.expired(now) else kept).append(request)
    return kept, dropped


def _tokens(requests: Iterable[Request]) -> int:
    return sum(request.length for request in requests)
