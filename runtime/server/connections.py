"""Connections: how many there are, how they are taken, and how long a client may take to say what it wants.

Uvicorn bounds neither the time for a request's headers nor their size, and its listener takes connections until told
to stop for good. Knows nothing of requests' bodies: those are the gate's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MOST_HEADER_BYTES = 65_536  # of one request, its first line included
TAKEN = 16  # connections that are taken at one turn of the loop, at most
STARVED_SECONDS = 1.0  # without file descriptors: until the next try
STARVED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
TIMED_OUT = b"408 Request Timeout", b'{"error":"the request did not arrive in time","error_type":"Timeout"}'
TOO_LARGE = b"431 Request Header Fields Too Large", b'{"error":"the headers are too large","error_type":"Validation"}'
log = logging.getLogger("nopad.server")


class Connection(HttpToolsProtocol):
    """Uvicorn's connection, with bounds on its headers.

    A request whose headers are not there `header_seconds` after the connection, or after its first byte on one that is
    used again, gets 408; one with more than `MOST_HEADER_BYTES` of them 431. Both end the connection. Where `last`
    says so, an answer is the last one of its connection.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        *,
        header_seconds: float,
        last: Callable[[], bool],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._header_seconds, self._last, self._ended = header_seconds, last, ended
        self._waiting: asyncio.TimerHandle | None = None  # for headers
        self._header_bytes = 0
        self._in_headers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another one."""
        self._wait_no_more()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._ended()

    def data_received(self, data: bytes) -> None:
        """Bytes of a client. Those that make up no request must not keep a connection alive."""
        idle = not self._answering
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_headers or (idle and not self._answering):
            self._header_bytes += len(data)
            if self._header_bytes > MOST_HEADER_BYTES:
                self._refuse(*TOO_LARGE)
            elif self._waiting is None:
                self._wait()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        """The request can be answered."""
        self._in_headers, self._header_bytes = False, 0
        self._wait_no_more()
        super().on_headers_complete()
        if self._last():
            self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, also where the client does not read what it was sent."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self._header_seconds, self._too_late)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_late(self) -> None:
        self._waiting = None
        if self._answering:  # the next request of a pipeline, of which the first is being answered
            self._wait()
        elif self._header_bytes:
            self._refuse(*TIMED_OUT)
        else:
            self.transport.close()

    def _refuse(self, status: bytes, body: bytes) -> None:
        length = str(len(body)).encode()
        head = [b"HTTP/1.1 " + status, b"content-type: application/json", b"content-length: " + length]
        self.transport.write(b"\r\n".join([*head, b"connection: close", b"", body]))
        self.transport.close()


class Acceptor:
    """Takes connections from listening sockets, `most` at once; the others wait in the kernel, or other processes take
    them. `TAKEN` at a time: with one for each turn of a busy loop clients would wait for longer than their deadlines;
    with many, processes that share a socket would not share its connections evenly.

    The loop's own listener knows no bound, and can be shut only for good. While this one is shut, the sockets go on
    listening.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make: Callable[[], asyncio.Protocol],
        state: ServerState,
        *,
        most: int,
        context: ssl.SSLContext | None,
        handshake_seconds: float,
    ) -> None:
        self._sockets, self._make, self._connections = sockets, make, state.connections
        self._most, self._context, self._handshake_seconds = most, context, handshake_seconds
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()  # connections before or in their TLS handshake
        self._open = self._starved = self._reading = False
        for listening in sockets:
            listening.setblocking(False)

    def open(self) -> None:
        """Take connections."""
        self._open = True
        self.update()

    def shut(self) -> None:
        """Take none for now."""
        self._open = False
        self.update()

    @property
    def beginning(self) -> bool:
        """Whether a connection was taken that is not one of the server's yet."""
        return bool(self._beginning)

    def update(self) -> None:
        """Whether there is room may have changed."""
        room = len(self._beginning) + len(self._connections) < self._most
        reading = self._open and room and not self._starved
        if reading != self._reading:
            self._reading = reading
            for listening in self._sockets:
                if reading:
                    self._loop.add_reader(listening, self._accept, listening)
                else:
                    self._loop.remove_reader(listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(TAKEN):
            if not (self._reading and self._take(listening)):
                return

    def _take(self, listening: socket.socket) -> bool:
        """Take one connection; False if there is none."""
        try:
            taken, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another process was faster, or the client has gone
        except OSError as error:
            if error.errno not in STARVED:
                raise
            log.warning("no connections are taken for %g s: %s", STARVED_SECONDS, error.strerror)
            self._starved = True
            self._loop.call_later(STARVED_SECONDS, self._fed)
            self.update()
            return False
        task = self._loop.create_task(self._begin(taken))
        self._beginning.add(task)
        task.add_done_callback(self._begun)
        self.update()
        return True

    async def _begin(self, taken: socket.socket) -> None:
        taken.setblocking(False)
        if taken.family in (socket.AF_INET, socket.AF_INET6):
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = None if self._context is None else self._handshake_seconds
        try:
            await self._loop.connect_accepted_socket(
                self._make, taken, ssl=self._context, ssl_handshake_timeout=seconds
            )
        except (OSError, TimeoutError):  # no TLS, or too slow, or gone
            taken.close()

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._beginning.discard(task)
        self.update()

    def _fed(self) -> None:
        self._starved = False
        self.update()
