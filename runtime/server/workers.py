"""The supervisor: several worker processes on the same sockets, watched, restarted, replaced and ended in order.

It answers nothing itself, so nothing in it can hang on a request. Workers are spawned, never forked: ONNX Runtime's
threads do not come along. They share one listening socket of each address, and so its backlog: whichever is idle takes
the next connection, and one that ends leaves none behind unanswered, as it would with SO_REUSEPORT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from nopad.model.cpus import usable_cores
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.server.settings import METRICS_FOLDER, Job, Order
from nopad.runtime.server.worker import CLOSE_SECONDS, Beat, Failed, work

TICK_SECONDS = 0.1
MOST_FAILURES = 3  # deaths while loading, one after the other, after which a server without any other worker ends
START_SECONDS = 60.0
STABLE_SECONDS = 60.0  # a worker that lived so long is restarted at once
LONGEST_PAUSE = 30.0  # seconds before a restart
THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")  # of numpy's BLAS and of tokenizers
log = logging.getLogger("nopad.server")
Ready = Callable[[Mapping[str, str]], None]


def share_of_threads(threads: int | None, count: int) -> int:
    """The CPU threads of each of `count` workers, out of `threads` or of all cores."""
    return max(1, (threads or usable_cores()) // count)


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    line: Connection
    began: float
    heard: float | None = None  # when it last said something
    tasks: dict[str, str] | None = None  # None until it is ready
    stuck: float = 0.0
    accepting: bool = False  # while it loads
    error: BaseException | None = None
    leaves: float | None = None  # when it is killed, if it has not ended by then

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def order(self, order: Order) -> None:
        with contextlib.suppress(OSError):  # it has just died, which is seen to elsewhere
            self.line.send(order)

    def hear(self) -> bool:
        """Take note of what it has said; False once it will say nothing more."""
        try:
            while self.line.poll():
                message = self.line.recv()
                self.heard = time.monotonic()
                if isinstance(message, Beat):
                    self.tasks, self.stuck = message.tasks, message.stuck
                elif isinstance(message, Failed):
                    self.error = message.error
        except (EOFError, OSError):
            return False
        return True

    def silent(self, now: float) -> float:
        """Seconds since it made progress. At first it imports, which is given a minute."""
        return now - self.began - START_SECONDS if self.heard is None else max(self.stuck, now - self.heard)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.line.close()


@dataclass
class _Slot:
    """The place of a worker, across its restarts."""

    worker: _Worker | None = None
    deaths: int = 0  # in a row, each soon after the last
    failures: int = 0  # those of them that were before it was ready
    starts: float = 0.0  # not before


class Supervisor:
    """`run` starts the workers and returns when all have ended; it raises what loading raised in one of them.

    SIGTERM or SIGINT drains, a second one kills. SIGHUP replaces the workers one after the other. `ready` is called
    once, when all workers are ready for the first time. `target` is what a worker runs.
    """

    def __init__(
        self, job: Job, sockets: Sequence[socket.socket], *, ready: Ready, target: Callable[..., None] = work
    ) -> None:
        self._threads = share_of_threads(job.options.get("threads"), job.settings.workers)
        self._job = dataclasses.replace(job, options={**job.options, "threads": self._threads})
        self._sockets, self._ready, self._target = list(sockets), ready, target
        self._slots = [_Slot() for _ in range(job.settings.workers)]
        self._leaving: list[_Worker] = []
        self._coming: _Worker | None = None  # a replacement that loads
        self._replacing: list[_Slot] = []  # those whose turn has not come
        self._signals: list[int] = []
        self._draining = self._ending = self._said = self._served = False
        self._error: BaseException | None = None
        self._folder = ""  # of the metrics of all workers

    def run(self) -> None:
        """Supervise until the end."""
        with self._surroundings():
            try:
                while not self._over():
                    self._obey_signals()
                    self._listen()
                    self._watch()
                    self._replace()
                    self._fill()
            finally:
                for worker in self._all():
                    worker.kill()
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Signals, a folder for metrics, and the environment of the workers."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        environment = dict(os.environ)
        self._folder = tempfile.mkdtemp(prefix="nopad-metrics-")
        os.environ[METRICS_FOLDER] = self._folder
        for name in THREAD_VARIABLES:
            os.environ.setdefault(name, str(self._threads))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            shutil.rmtree(self._folder, ignore_errors=True)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _over(self) -> bool:
        return self._ending or self._error is not None or (self._draining and not self._all())

    def _all(self) -> list[_Worker]:
        found = [slot.worker for slot in self._slots] + [*self._leaving, self._coming]
        return [worker for worker in found if worker is not None]

    def _obey_signals(self) -> None:
        while self._signals:
            if self._signals.pop(0) != signal.SIGHUP:
                self._ending = self._draining
                self._drain()
            elif not self._draining and not self._replacing:
                self._replacing = list(self._slots)

    def _drain(self) -> None:
        self._draining, self._replacing = True, []
        for worker in self._all():
            if worker.tasks is None:  # it has no requests
                worker.kill()
                self._forget(worker)
            else:
                worker.order("drain")
                worker.leaves = time.monotonic() + self._job.settings.drain_seconds + CLOSE_SECONDS

    def _listen(self) -> None:
        """Hear what workers say, for one tick."""
        lines = {worker.line: worker for worker in self._all()}
        if not lines:
            time.sleep(TICK_SECONDS)
        for line in wait(list(lines), TICK_SECONDS):
            assert isinstance(line, Connection)
            if not lines[line].hear():  # it is ending; `_watch` sees to it
                lines[line].process.join(TICK_SECONDS)

    def _watch(self) -> None:
        """Kill workers that hang, and see to those that have ended."""
        now, most = time.monotonic(), self._job.settings.hang_seconds
        for worker in self._all():
            if worker.process.is_alive():
                if worker.leaves is not None and now > worker.leaves:
                    log.warning("worker %d did not end in time and is killed", worker.pid)
                    worker.process.kill()
                elif worker.silent(now) > most:
                    log.error("worker %d has made no progress for %g s and is killed", worker.pid, most)
                    worker.process.kill()
                continue
            worker.hear()
            worker.kill()  # to collect it
            self._forget(worker)
        if not self._said and all(slot.worker and slot.worker.tasks for slot in self._slots):
            first = self._slots[0].worker
            assert first is not None and first.tasks is not None
            self._said = True
            self._ready(first.tasks)

    def _forget(self, worker: _Worker) -> None:
        """A worker is no more."""
        self._mark_dead(worker.pid)
        if worker in self._leaving:
            self._leaving.remove(worker)
        elif worker is self._coming:
            self._coming, self._replacing = None, []
            if not self._draining:
                log.error("a new worker could not be started, the old ones stay: %s", _cause(worker))
        else:
            (slot,) = (slot for slot in self._slots if slot.worker is worker)
            slot.worker = None
            if not self._draining:
                self._mourn(slot, worker)

    def _mourn(self, slot: _Slot, worker: _Worker) -> None:
        """A worker has ended that was not to: when is the next one started, if at all?"""
        now = time.monotonic()
        slot.deaths = 0 if now - worker.began > STABLE_SECONDS else slot.deaths + 1
        slot.failures = 0 if worker.tasks is not None else slot.failures + 1
        pause = min(LONGEST_PAUSE, 0.25 * 2**slot.deaths) if slot.deaths else 0.0
        slot.starts = now + pause
        others = any(other.tasks is not None for other in self._all())
        hopeless = slot.failures >= MOST_FAILURES or (worker.error is not None and not self._served)
        if slot.failures and not others and hopeless:
            self._error = worker.error or EnvironmentProblem(
                f"{_cause(worker)}, {slot.failures} times before it was ready; is there enough memory for "
                f"{len(self._slots)} workers?"
            )
            return
        log.error("%s; another one is started in %g s", _cause(worker), pause)

    def _fill(self) -> None:
        """Start workers where there are none; while none is ready, let one that loads say so to clients."""
        if self._draining or self._error is not None:
            return
        for slot in self._slots:
            if slot.worker is None and time.monotonic() >= slot.starts:
                slot.worker = self._start()
        workers = self._all()
        ready = any(worker.tasks is not None and worker.leaves is None for worker in workers)
        self._served |= ready
        loading = [worker for worker in workers if worker.tasks is None]
        for worker in loading[: None if ready else 1]:
            if worker.accepting == ready:
                worker.accepting = not ready
                worker.order("hold" if ready else "accept")

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=self._target, args=(self._job, self._sockets, theirs), daemon=True)
        # Blocked, and so ignored by the worker for good: Ctrl-C reaches it too, but ending is by order.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process=process, line=ours, began=time.monotonic())

    def _replace(self) -> None:
        """The next step of a rolling restart: a new worker is ready before an old one goes, one at a time."""
        if not self._replacing or self._draining:
            return
        if self._coming is None:
            if not self._leaving:
                self._coming = self._start()
        elif self._coming.tasks is not None:
            slot = self._replacing.pop(0)
            old, slot.worker, self._coming = slot.worker, self._coming, None
            if old is not None:
                old.order("retire")
                old.leaves = time.monotonic() + self._job.settings.drain_seconds + CLOSE_SECONDS
                self._leaving.append(old)

    def _mark_dead(self, pid: int) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid, self._folder)


def _cause(worker: _Worker) -> str:
    if worker.error is not None:
        return f"worker {worker.pid} ended: {worker.error}"
    code = worker.process.exitcode or 0
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"worker {worker.pid} ended {how}"
