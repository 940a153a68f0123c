"""Listening sockets: a port, a Unix socket, or both; one socket is shared by all processes of a server."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from nopad.runtime.errors import UsageError

BACKLOG = 2048  # connections that the kernel keeps until a process takes them
MODE = 0o660  # of a Unix socket: its owner and group may connect


def bind(host: str, port: int, option: str = "--host or --port") -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises `UsageError`, which tells to choose another `option`."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host} port {port}: {reason}; choose another {option}") from None


def reserve(host: str, port: int) -> socket.socket:
    """A socket that holds a port for the gRPC servers of this process and its workers; 0: any free one.

    It does not listen: they do, and share the port. Raises `UsageError`.
    """
    with bind(host, port, "--host or --grpc-port") as probe:  # which fails where anybody listens
        address = probe.getsockname()
        family = probe.family
    holding = socket.socket(family)
    if hasattr(socket, "SO_REUSEPORT"):
        holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holding.bind(address)
    return holding


def bind_unix(path: Path) -> socket.socket:
    """A listening Unix socket. One that nobody listens on any more is replaced. Raises `UsageError`."""
    if not hasattr(socket, "AF_UNIX"):
        raise UsageError("this system has no Unix sockets: leave --uds out")
    listening = socket.socket(socket.AF_UNIX)
    try:
        _clear(path)
        listening.bind(str(path))
        path.chmod(MODE)  # before `listen`, so that nobody gets in by the mode that the umask left
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise UsageError(f"cannot listen on --uds {path}: {error.strerror or error}") from None
    except UsageError:
        listening.close()
        raise
    return listening


@contextlib.contextmanager
def listening_on(address: tuple[str, int] | None, unix: Path | None) -> Iterator[list[socket.socket]]:
    """Sockets for a host and port, a path, or both; closed at the end, the path removed. Raises `UsageError`."""
    with contextlib.ExitStack() as stack:
        sockets = []
        if address is not None:
            sockets.append(stack.enter_context(bind(*address)))
        if unix is not None:
            sockets.append(stack.enter_context(bind_unix(unix)))
            stack.callback(_remove, unix, unix.lstat().st_ino)
        yield sockets


def url_of(listening: socket.socket, tls: bool) -> str:
    """How a user writes the socket's address."""
    if listening.family == getattr(socket, "AF_UNIX", None):
        return f"unix:{listening.getsockname()}"
    return f"{'https' if tls else 'http'}://{address_of(listening)}"


def address_of(bound: socket.socket) -> str:
    """HOST:PORT of a socket."""
    host, port = bound.getsockname()[:2]
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _clear(path: Path) -> None:
    """Remove a socket on which nobody listens."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found):
        raise UsageError(f"{path} is there already and is no socket: name another --uds")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise UsageError(f"another server listens on {path}: stop it, or name another --uds")


def _remove(path: Path, inode: int) -> None:
    with contextlib.suppress(OSError):  # gone already, or by now the socket of another server
        if path.lstat().st_ino == inode:
            os.unlink(path)
