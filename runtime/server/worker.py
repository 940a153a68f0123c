"""A worker: one of several processes that answer on the same sockets, and its line to the supervisor.

Light to import, for the supervisor's sake: the web framework and the models are imported where a worker runs.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from nopad.runtime.errors import EnvironmentProblem, NopadError
from nopad.runtime.server.settings import METRICS_FOLDER, Job

if TYPE_CHECKING:
    from nopad.runtime.server.run import Server

BEAT_SECONDS = 0.2
CLOSE_SECONDS = 6.0  # beyond a drain, for the end of a micro-batch and of the process


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker says of itself, a few times a second."""

    tasks: dict[str, str] | None  # of its models by name; None until they are loaded
    stuck: float  # seconds without progress of the event loop, or of the micro-batch that runs


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The last thing that a worker says which could not load, or not go on."""

    error: BaseException


def work(job: Job, sockets: Sequence[socket.socket], line: Connection) -> None:
    """A worker's whole life: load, answer, obey. It ends by order, or when the supervisor has gone."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    teller = _Teller(line)
    try:
        from nopad.runtime.server.run import serve

        serve(
            job,
            sockets,
            loaded=teller.loaded,
            began=lambda server: teller.begin(server, job.settings.drain_seconds),
            supervised=True,
        )
    except BaseException as error:
        teller.failed(error)
        sys.exit(error.exit_code if isinstance(error, NopadError) else 1)


class _Teller:
    """The worker's end of the line. A thread beats and takes orders, so that a loop that is stuck is noticed."""

    def __init__(self, line: Connection) -> None:
        self._line, self._lock = line, threading.Lock()
        self._tasks: dict[str, str] | None = None

    def loaded(self, tasks: Mapping[str, str]) -> None:
        self._tasks = dict(tasks)

    def begin(self, server: Server, drain_seconds: float) -> None:
        threading.Thread(target=self._live, args=(server, drain_seconds), name="nopad-line", daemon=True).start()

    def failed(self, error: BaseException) -> None:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # its type cannot be sent: then what it says
            error = EnvironmentProblem(f"{type(error).__name__}: {error}")
        self._say(Failed(error=error))

    def _live(self, server: Server, drain_seconds: float) -> None:
        while not server.started:  # until then it cannot obey
            time.sleep(BEAT_SECONDS / 4)
        try:
            while True:
                if self._line.poll(BEAT_SECONDS):
                    server.order(self._line.recv())
                self._say(Beat(tasks=self._tasks, stuck=server.stuck()))
        except (EOFError, OSError):  # the supervisor was killed
            shutil.rmtree(os.environ.get(METRICS_FOLDER, ""), ignore_errors=True)
            if self._tasks is not None:
                server.order("retire")
                time.sleep(drain_seconds + CLOSE_SECONDS)
            os._exit(1)

    def _say(self, message: Any) -> None:
        with self._lock:
            self._line.send(message)
