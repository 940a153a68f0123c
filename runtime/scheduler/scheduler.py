"""`Scheduler`: the queue and its worker as callers see them, from threads and from coroutines."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nopad.runtime.errors import DeadlineError, NopadError, UsageError
from nopad.runtime.scheduler.events import Observer
from nopad.runtime.scheduler.queue import Limits, Plan, Queue
from nopad.runtime.scheduler.request import PRIORITIES, Call, Done, Priority, Request
from nopad.runtime.scheduler.worker import Clock, Worker

P = TypeVar("P")
R = TypeVar("R")
CLOSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class State:
    """The scheduler at one moment."""

    ready: bool  # the last micro-batch or probe ran well, and neither draining nor closed
    draining: bool
    closed: bool
    requests: int  # that wait
    tokens: int  # of those
    running: int  # requests of the micro-batch that runs
    running_tokens: int  # of those
    running_since: float | None  # by the scheduler's clock: a time long ago is an engine that hangs
    restarts: int  # threads that died


class Scheduler(Generic[P, R]):
    """Packs requests from any thread or coroutine into micro-batches, and runs these in one thread of its own.

    `run` gets the payloads of a micro-batch and returns a result for each, or raises. `plan` groups token lengths into
    micro-batches. `observer` is called with each event (`nopad.runtime.scheduler.events`), outside the lock. `probe`
    runs something small through the engine and raises if that fails; it decides about `ready` after a micro-batch of
    which nothing succeeded, and after a death of the thread. `clock` gives seconds, for deadlines too.

    The thread starts with the first request, and ends with `close`, with the last reference to the scheduler, or with
    the interpreter. A forked child has an empty queue and starts a thread of its own; whether the engine survives a
    fork is its library's matter, so fork before you load.
    """

    def __init__(
        self,
        run: Callable[[list[P]], Sequence[R]],
        plan: Plan,
        limits: Limits | None = None,
        *,
        observer: Observer | None = None,
        probe: Callable[[], object] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._clock = clock
        queue = Queue(plan, limits or Limits())
        self._worker = Worker(run, queue, observer=observer, clock=clock, probe=probe)
        weakref.finalize(self, self._worker.stop).atexit = False  # the worker sees to the exit itself

    def submit(
        self,
        payloads: Sequence[P],
        lengths: Sequence[int],
        *,
        priority: Priority = "interactive",
        timeout: float | None = None,
        bounded: bool = True,
    ) -> Call[R]:
        """Queue requests together, `lengths` in tokens; returns at once.

        `timeout`: seconds from now until they expire. `bounded` False admits them whatever the limits: for callers who
        wait for the answer before they ask for more.
        Raises `OverloadedError` (nothing is queued then), `DrainingError`, `DeadlineError` for a timeout of 0 or less,
        and `UsageError` once closed.
        """
        if priority not in PRIORITIES:
            raise UsageError(f"priority is 'interactive' or 'batch', not {priority!r}")
        if min(lengths, default=1) < 1:
            raise UsageError("a request has at least one token")
        now = self._clock()
        call: Call[R] = Call(len(payloads), deadline=None if timeout is None else now + timeout)
        if not payloads:
            call.future.set_result([])
            return call
        if timeout is not None and timeout <= 0:
            raise DeadlineError("the deadline had passed before the texts were queued")
        requests = [
            Request(payload=payload, length=length, priority=priority, arrived=now, call=call, place=place)
            for place, (payload, length) in enumerate(zip(payloads, lengths, strict=True))
        ]
        self._worker.admit(requests, bounded=bounded)
        return call

    def wait(self, call: Call[R]) -> list[Done[R] | NopadError]:
        """The outcomes of a call, for a thread. Whoever stops waiting (Ctrl-C) has gone: the rest is dropped.

        Raises `DeadlineError` at the deadline, also while the engine hangs; `EngineError` if the worker died with it;
        `UsageError` if it was closed, or in the worker's own thread.
        """
        if self.in_worker() and not call.over:
            raise UsageError("the scheduler's own thread cannot wait for itself: ask from another thread")
        try:
            return call.future.result(self._remaining(call))
        except TimeoutError:
            raise self._give_up(call) from None
        except BaseException:
            call.future.cancel()
            raise

    async def awaited(self, call: Call[R]) -> list[Done[R] | NopadError]:
        """The outcomes of a call, for a coroutine; raises as `wait` does. A cancelled task is a caller who has gone."""
        answer = asyncio.wrap_future(call.future)
        if call.deadline is None:
            return await answer
        try:
            async with asyncio.timeout(self._remaining(call)):
                return await answer
        except TimeoutError:
            raise self._give_up(call) from None

    def in_worker(self) -> bool:
        """Whether this is the scheduler's own thread, which must not wait for an answer."""
        return self._worker.thread is threading.current_thread()

    def state(self) -> State:
        """What waits and runs, and whether it can be expected to be answered."""
        worker = self._worker
        with worker.lock:
            return State(
                ready=worker.ready and not worker.draining and not worker.closed,
                draining=worker.draining,
                closed=worker.closed,
                requests=worker.queue.requests,
                tokens=worker.queue.tokens,
                running=len(worker.running),
                running_tokens=sum(request.length for request in worker.running),
                running_since=worker.running_since,
                restarts=worker.restarts,
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new from now on, and wait until all is answered; False if `timeout` seconds did not suffice."""
        worker = self._worker
        with worker.lock:
            worker.draining = True
            return worker.idle.wait_for(lambda: not worker.queue.requests and not worker.running, timeout)

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Fail what waits, at once, with `UsageError`; what runs gets `timeout` seconds to come back.

        A second call does nothing. Call `drain` first to have everything answered.
        """
        self._worker.stop()
        self._worker.join(timeout)

    def _remaining(self, call: Call[R]) -> float | None:
        return None if call.deadline is None else max(0.0, call.deadline - self._clock())

    def _give_up(self, call: Call[Any]) -> DeadlineError:
        call.future.cancel()
        return DeadlineError("the deadline passed before the answer was there")
