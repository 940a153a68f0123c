"""Running one process of the server: loading while it answers 503 already, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from nopad.runtime.errors import UsageError
from nopad.runtime.server.app import create_app
from nopad.runtime.server.calls import Serving
from nopad.runtime.server.connections import Acceptor, Connection
from nopad.runtime.server.keys import Keys
from nopad.runtime.server.models import Models
from nopad.runtime.server.observed import observed
from nopad.runtime.server.settings import Job, Order, Settings
from nopad.runtime.server.tls import Tls

GRPC_STOP_SECONDS = 1.0  # for calls that a drain did not wait for
KEEP_ALIVE_SECONDS = 65  # longer than the usual 60 of load balancers, which else find connections closed under them
RETIRE_SECONDS = 2.0  # that a retired process leaves idle connections open: a client may just be asking on one
TAKEN, TAKEN_SHARED = 16, 2  # connections that are taken at one turn of the loop, alone and beside other processes
SPARE_FILES = 256  # file descriptors beside those of connections


class Server(uvicorn.Server):
    """Uvicorn, with models that load beside it and a drain at SIGTERM or Ctrl-C: 503 for what is new, the rest ends.

    `load` fills the models; it runs in another thread once the socket is served. `run_until_stopped` raises its error.
    A `supervised` one is one of several on the same sockets: until it is loaded it takes no connections unless told
    to, and a signal retires it.
    """

    def __init__(self, serving: Serving, load: Callable[[], None], *, supervised: bool = False) -> None:
        config = uvicorn.Config(
            HeadAsGet(create_app(serving)),
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._serving = serving
        self._load = load
        self._supervised = supervised
        settings = serving.settings
        self._tls = Tls(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
        self._loading: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._acceptor: Acceptor | None = None
        self._grpc: Any = None
        self._grpc_ends: asyncio.Future[None] | None = None
        self.grpc_port: int | None = None  # once it is served
        self._retiring = False
        self._ends: float | None = None  # when a drain is over at the latest
        self._ticked = self._answered = time.monotonic()

    def run_until_stopped(self, *listening: socket.socket) -> None:
        """Serve until a signal or `drain`. Raises what `load` raises."""
        _allow_files(self._serving.settings.max_connections + SPARE_FILES)
        for each in listening:
            if hasattr(socket, "TCP_USER_TIMEOUT") and each.family in (socket.AF_INET, socket.AF_INET6):
                # The sockets that it accepts inherit this: a client that does not read on in its answer is cut off.
                milliseconds = math.ceil(self._serving.settings.body_seconds * 1000)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self.run(sockets=list(listening))
        if self._loading is not None and self._loading.done() and not self._loading.cancelled():
            self._loading.result()

    def drain(self) -> None:
        """Take nothing new, finish what runs, then stop; called again, stop now."""
        if self._serving.draining:
            self.should_exit = self.force_exit = True
        self._serving.draining = True
        self._ends = time.monotonic() + self._serving.settings.drain_seconds

    def retire(self) -> None:
        """Leave new connections to other processes, answer what still comes over the old ones, then stop."""
        if not self._retiring:
            self._retiring = True
            self.hold()
            if self._grpc is not None:
                self._grpc_ends = asyncio.ensure_future(self._grpc.stop(self._serving.settings.drain_seconds))
            self._answered = time.monotonic()
            self._ends = self._answered + self._serving.settings.drain_seconds

    def accept(self) -> None:
        """Take connections, also before the models are loaded."""
        if self._acceptor is not None and not self._retiring:
            self._acceptor.open()

    def hold(self) -> None:
        """Take no connections until the models are loaded, or none any more."""
        if self._acceptor is not None and (self._retiring or not self._serving.ready):
            self._acceptor.shut()

    def order(self, name: Order) -> None:
        """Do one of these, from another thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(getattr(self, name))

    def stuck(self) -> float:
        """Seconds for which the event loop, or the micro-batch that runs, has made no progress; from any thread."""
        now = time.monotonic()
        return max([now - self._ticked, *(served.busy for served in self._serving.models)])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the socket, then begin to load."""
        settings = self._serving.settings
        self.servers = []  # the acceptor is in their place
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(
            sockets or [],
            self._connection,
            self.server_state,
            most=settings.max_connections,
            at_once=TAKEN_SHARED if self._supervised else TAKEN,
            context=self._tls.context if self._tls else None,
            handshake_seconds=settings.header_seconds,
        )
        if threading.current_thread() is threading.main_thread():
            # What it asks for, new keys and a new certificate, happens within a second by itself.
            self._loop.add_signal_handler(signal.SIGHUP, lambda: None)
        if not self._supervised:
            self.accept()
            await self._start_grpc()
        self.started = True
        self._loading = asyncio.create_task(self._load_models())
        self._loading.add_done_callback(lambda task: None if task.cancelled() or task.exception() else self.accept())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the sockets and what is left of connections."""
        self._retiring = True
        self.hold()
        if self._grpc is not None:
            await self._grpc.stop(GRPC_STOP_SECONDS)
        await super().shutdown(sockets)

    async def _load_models(self) -> None:
        await asyncio.to_thread(self._load)
        if self._supervised:
            await self._start_grpc()

    async def _start_grpc(self) -> None:
        settings = self._serving.settings
        if settings.grpc_address is None or self._retiring:
            return
        from nopad.runtime.server.grpc.service import start

        app: Any = self.config.app
        files = (settings.tls_cert, settings.tls_key) if settings.tls_cert is not None else None
        self._grpc, self.grpc_port = await start(app, settings.grpc_address, most_bytes=settings.max_body, tls=files)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        self._ticked = now = time.monotonic()
        if self._serving.running:
            self._answered = now
        if self._tls is not None:
            self._tls.renew()
        if counter % 10 == 0 and self._serving.metrics.shared:  # another worker process may answer the next scrape
            with contextlib.suppress(Exception):  # which must not end a server
                self._serving.refresh_metrics()
        failed = self._loading is not None and self._loading.done() and self._loading.exception() is not None
        return await super().on_tick(counter) or failed or self._over(now)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: uvicorn's own handler would refuse connections while requests still run."""
        if not self._supervised:
            self.drain()
        elif sig == signal.SIGTERM:
            self.order("retire")

    def _over(self, now: float) -> bool:
        if self._ends is None or self._serving.running:
            return self._ends is not None and now > self._ends
        if self._serving.draining:
            return True
        alone = not self.server_state.connections and not (self._acceptor and self._acceptor.beginning)
        return alone or now > min(self._ends, self._answered + RETIRE_SECONDS)

    def _connection(self) -> Connection:
        assert self._acceptor is not None
        return Connection(
            self.config,
            self.server_state,
            header_seconds=self._serving.settings.header_seconds,
            last=lambda: self._retiring or not self._serving.ready,
            ended=self._acceptor.update,
        )


def serve(
    job: Job,
    sockets: Sequence[socket.socket],
    *,
    loaded: Callable[[Mapping[str, str]], None],
    began: Callable[[Server], None] = lambda server: None,
    supervised: bool = False,
) -> None:
    """Serve a job in this process until a signal. Raises what loading raises.

    `began` gets the server before it runs; `loaded` gets the models' tasks by name, in the thread that loads.
    """
    models = Models()
    serving = Serving(job.settings, models)

    def load() -> None:
        serving.open(job.bundles, **job.options)
        loaded({served.name: served.model.task for served in models})

    with observed(serving, job.host):
        server = Server(serving, load, supervised=supervised)
        began(server)
        try:
            server.run_until_stopped(*sockets)
        finally:
            models.close()


def check(settings: Settings) -> None:
    """Read the files of keys and certificates, before anything is started. Raises `UsageError`."""
    Keys(settings.keys, settings.key_file)
    Keys(settings.admin_keys, settings.admin_key_file)
    if settings.tls_cert is not None:
        Tls(settings.tls_cert, settings.tls_key)
    elif settings.tls_key is not None:
        raise UsageError("--tls-key is the key of a --tls-cert: give both")


class HeadAsGet:
    """HEAD is answered as GET is: uvicorn sends no body for it, and FastAPI has no routes of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def _allow_files(count: int) -> None:
    """Raise the soft limit of open files to `count`, as far as the hard one lets it."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
