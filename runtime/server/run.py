"""Running the server: the socket, loading while it answers 503 already, and an orderly end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from nopad.runtime.errors import UsageError
from nopad.runtime.server.app import create_app
from nopad.runtime.server.calls import Serving

KEEP_ALIVE_SECONDS = 65  # longer than the usual 60 of load balancers, which else find connections closed under them


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises `UsageError`."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host} port {port}: {reason}; choose another --host or --port") from None


class Server(uvicorn.Server):
    """Uvicorn, with models that load beside it and a drain at SIGTERM or Ctrl-C: 503 for what is new, the rest ends.

    `load` fills the models; it runs in another thread once the socket is served. `run_until_stopped` raises its error.
    """

    def __init__(self, serving: Serving, load: Callable[[], None]) -> None:
        config = uvicorn.Config(
            create_app(serving),
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
        self._loading: asyncio.Task[None] | None = None
        self._ends: float | None = None  # when a drain is over at the latest

    def run_until_stopped(self, listening: socket.socket) -> None:
        """Serve until a signal or `drain`. Raises what `load` raises."""
        self.run(sockets=[listening])
        if self._loading is not None and self._loading.done() and not self._loading.cancelled():
            self._loading.result()

    def drain(self) -> None:
        """Take nothing new, finish what runs, then stop; called again, stop now."""
        if self._serving.draining:
            self.should_exit = self.force_exit = True
        self._serving.draining = True
        self._ends = time.monotonic() + self._serving.settings.drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the socket, then begin to load."""
        await super().startup(sockets)
        self._loading = asyncio.create_task(asyncio.to_thread(self._load))

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        if counter % 10 == 0 and self._serving.metrics.shared:  # another worker process may answer the next scrape
            with suppress(Exception):  # which must not end a server
                self._serving.refresh_metrics()
        failed = self._loading is not None and self._loading.done() and self._loading.exception() is not None
        over = self._ends is not None and (not self._serving.running or time.monotonic() > self._ends)
        return await super().on_tick(counter) or failed or over

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: uvicorn's own handler would refuse connections while requests still run."""
        self.drain()
