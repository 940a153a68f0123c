"""The one thread that runs micro-batches: take, run, answer. It starts with the first request.

All state is guarded by one lock, which is never held while anything of others runs (the engine, the observer, callbacks
of futures).
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Literal

from nopad.runtime.errors import ClosedError, DeadlineError, DrainingError, EngineError, NopadError, OverloadedError
from nopad.runtime.scheduler.attempt import Run, attempt
from nopad.runtime.scheduler.events import (
    Admitted,
    BatchRun,
    Dropped,
    Observer,
    Refused,
    WorkerDied,
    tell,
)
from nopad.runtime.scheduler.queue import Queue
from nopad.runtime.scheduler.request import Done, Request

PROBE_SECONDS = 1.0  # between probes while not ready and idle
SWEEP_SECONDS = 0.05  # between looks at the whole queue for room, while callers are refused
EXIT_SECONDS = 5.0  # that the interpreter's exit waits for a running micro-batch
log = logging.getLogger("nopad")
Clock = Callable[[], float]
_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """Owns the queue and the thread. Holds no reference to `Scheduler`, so that its end can end the thread."""

    def __init__(
        self, run: Run, queue: Queue, *, observer: Observer | None, clock: Clock, probe: Callable[[], object] | None
    ) -> None:
        self.queue = queue
        self.ready = True
        self.draining = False
        self.closed = False
        self.restarts = 0
        self.running: list[Request] = []
        self.running_since: float | None = None
        self.thread: threading.Thread | None = None
        self._run, self._observer, self._clock, self._probe = run, observer, clock, probe
        self._swept = float("-inf")
        self._make_locks()
        _workers.add(self)

    def _make_locks(self) -> None:
        # Both are reentrant, since the garbage collector may call `stop` at any point of any thread.
        self.lock = threading.RLock()
        self.wake: SimpleQueue[None] = SimpleQueue()  # an entry where the thread must look again
        self.idle = threading.Condition(self.lock)  # for `drain`: nothing waits and nothing runs

    def admit(self, requests: Sequence[Request], *, bounded: bool) -> None:
        """Queue all of the requests or none, and see to it that the thread runs."""
        dropped: list[Request] = []
        now = self._clock()
        try:
            with self.lock:
                if self.closed:
                    raise ClosedError("closed: nothing runs any more, load the model again")
                if self.draining:
                    raise DrainingError("draining: what waits is answered, but nothing new is taken")
                if bounded and not self.queue.has_room(requests) and now - self._swept >= SWEEP_SECONDS:
                    self._swept = now
                    dropped = self.queue.sweep(now)
                if self.thread is None:
                    self._start()
                self.queue.admit(requests, bounded=bounded)
            self.wake.put(None)
        except OverloadedError as error:
            self._tell(Refused, requests, retry_after=error.retry_after, priority=requests[0].priority)
            raise
        finally:
            self._drop(dropped)
        self._tell(Admitted, requests, priority=requests[0].priority)

    def stop(self) -> None:
        """Fail what waits, and end the thread after the micro-batch that it runs. May be called anywhere and again."""
        with self.lock:
            self.closed = True
            waiting = self.queue.clear()
            self.idle.notify_all()
        self.wake.put(None)
        _fail(waiting, ClosedError("closed while this text waited: load the model again"))

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread; what still runs after `timeout` seconds fails."""
        thread = self.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            with self.lock:
                running = list(self.running)
            _fail(running, ClosedError(f"closed, and the engine did not come back within {timeout:g} s"))

    def forget(self) -> None:
        """In a forked child: start anew. Neither the thread nor those who wait have come along."""
        self._make_locks()
        self.queue.clear()
        self.running, self.running_since, self.thread = [], None, None

    def _start(self) -> None:
        self.thread = threading.Thread(target=self._live, name="nopad-scheduler", daemon=True)
        self.thread.start()

    def _live(self) -> None:
        try:
            if not self.ready:
                self.ready = self._sound()
            while self._serve_next():
                pass
        except BaseException as error:  # not an engine's failure, which `attempt` answers
            self._die(error)

    def _serve_next(self) -> bool:
        """Serve a micro-batch, or else wait until there may be one; False when the thread is to end."""
        with suppress(Empty):  # what was admitted until now is seen by `take`
            while True:
                self.wake.get_nowait()
        now = self._clock()
        with self.lock:
            taken = self.queue.take(now)
            if taken.batch:
                self.running, self.running_since = taken.batch, now
            elif self.closed:
                return False
            else:
                self.idle.notify_all()
        self._drop(taken.dropped)
        if taken.batch:
            self._serve(taken.batch, now)
            return True
        try:
            self.wake.get(timeout=PROBE_SECONDS if self._probe is not None and not self.ready else None)
        except Empty:
            self.ready = self._sound()
        return True

    def _serve(self, batch: list[Request], started: float) -> None:
        waited = tuple(started - request.arrived for request in batch)
        failed = answered = 0
        for part, values in attempt(batch, self._run, self._sound):
            ran = self._clock() - started
            if isinstance(values, NopadError):
                failed += len(part)
                for request in part:
                    request.call.answer(request.place, values)
            else:
                answered += len(part)
                tokens = sum(request.length for request in part)
                for request, value in zip(part, values, strict=True):
                    queued = started - request.arrived
                    request.call.answer(request.place, Done(value=value, queued=queued, ran=ran, batch_tokens=tokens))
        seconds = self._clock() - started
        ready = True if answered else self._sound() if failed else self.ready
        with self.lock:
            self.ready = ready
            self.running, self.running_since = [], None
            if answered:
                self.queue.note_run(sum(request.length for request in batch), seconds)
        longest = max(request.length for request in batch)
        self._tell(BatchRun, batch, failed=failed, longest=longest, seconds=seconds, waited=waited)

    def _sound(self) -> bool:
        """Whether the probe runs; without a probe, what was known before."""
        if self._probe is None:
            return self.ready
        try:
            self._probe()
        except BaseException as error:
            log.warning("the probe of the engine fails: %s", error)
            return False
        return True

    def _die(self, error: BaseException) -> None:
        with self.lock:
            # Where no batch ran, the queue itself is at fault, and would be again.
            lost = self.running or self.queue.clear()
            self.running, self.running_since = [], None
            self.ready = False
            self.restarts += 1
            if not self.closed:
                self._start()
        log.error("the scheduler's thread died and was started again: %s: %s", type(error).__name__, error)
        cause = EngineError(f"the thread that ran this text died: {type(error).__name__}: {error}")
        cause.__cause__ = error
        _fail(lost, cause)
        tell(self._observer, WorkerDied(cause=error, requests=len(lost)))

    def _drop(self, dropped: Sequence[Request]) -> None:
        now = self._clock() if dropped else 0.0
        gone = [request for request in dropped if request.call.over]
        expired = [request for request in dropped if not request.call.over]
        for request in expired:
            request.call.fail(DeadlineError(f"its deadline passed after {now - request.arrived:.3f} s in the queue"))
        reasons: tuple[tuple[Literal["gone", "deadline"], list[Request]], ...] = (("gone", gone), ("deadline", expired))
        for reason, requests in reasons:
            if requests:
                self._tell(Dropped, requests, reason=reason)

    def _tell(self, kind: Callable[..., Any], requests: Sequence[Request], **more: object) -> None:
        if self._observer is not None:
            tokens = sum(request.length for request in requests)
            tell(self._observer, kind(requests=len(requests), tokens=tokens, **more))


def _fail(requests: Sequence[Request], error: NopadError) -> None:
    for request in requests:
        request.call.fail(error)


def _stop_all() -> None:
    """Let no thread be inside an engine when the interpreter ends: that can abort the process."""
    for worker in list(_workers):
        worker.stop()
        worker.join(EXIT_SECONDS)


def _forget_all() -> None:
    for worker in list(_workers):
        worker.forget()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
