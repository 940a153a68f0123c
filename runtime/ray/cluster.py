"""Connecting to a Ray cluster, or starting one on this machine: what it has room for, and Ray's errors as ours."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nopad.runtime.errors import EnvironmentProblem, UsageError

LOCAL = "local"
CONNECT_SECONDS = 20.0  # in which a cluster must answer; Ray itself tries for minutes
# What a client of HTTP/2, so also of gRPC, begins with, and a server answers with: RFC 9113, sections 3.4 and 6.5.
HTTP2, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"
MOST_THREADS = 4  # of a replica, unless told otherwise: more replicas answer more than more threads do


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one replica takes of a node; Ray keeps it free for the replica, which runs so many threads."""

    threads: int
    gpus: float = 0.0


@contextmanager
def cluster(address: str) -> Iterator[list[dict[str, float]]]:
    """Join the cluster at `address` (HOST:PORT, `auto` for this machine's, `local` for one of its own) for the `with`.

    Yields what each node has of CPU and GPU. Nothing is reported to Ray's makers by a cluster that starts here.
    Raises `UsageError`, and `EnvironmentProblem` where there is no such cluster.
    """
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray {address} is a port of Ray Client, which is not supported: run on a node of the cluster "
            "(or with `ray job submit`) and name HOST:PORT, or auto"
        )
    if address not in (LOCAL, "auto"):
        _check_address(address)
        if os.environ.get("RAY_USE_TLS", "0") != "1":
            _require_answer(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # this process's; what stops a job is raised
    import ray

    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)  # Ray's own would end the process at once
    alone: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **alone)
    except Exception as error:  # Ray raises that itself where it cannot start
        todo = "try again" if address == LOCAL else "start one with `ray start --head`, or name --ray local"
        raise EnvironmentProblem(f"no Ray cluster at {address}: {first_line(error)}; {todo}") from None
    if main:
        signal.signal(signal.SIGTERM, handler)
    try:
        yield [
            {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")} for node in ray.nodes() if node["Alive"]
        ]
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise UsageError(
            f"--ray {address!r} is no address of a cluster: name HOST:PORT as `ray start --head` prints it, auto for "
            "the cluster of this machine, or local to start one here"
        )


def _require_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.sendall(HTTP2 + SETTINGS)
            answer = connection.makefile("rb").read(len(SETTINGS))
        said = "" if answer[3:4] == SETTINGS[3:4] else "what listens there is something else"
    except OSError as error:
        said = str(error)
    if said:
        raise EnvironmentProblem(
            f"no Ray cluster at {address}: {said}; name the port of its head (6379 unless told otherwise, not that of "
            "its dashboard), or start one with `ray start --head`, or name --ray local"
        )


def share(nodes: list[dict[str, float]], threads: int | None, gpus: float) -> tuple[Share, int]:
    """What a replica takes, and for how many of them there is room now. Raises `UsageError` where there is for none."""
    wanted = Share(threads=threads or max(1, min(MOST_THREADS, int(max(node["CPU"] for node in nodes)))), gpus=gpus)
    room = sum(min(int(node["CPU"] // wanted.threads), int(node["GPU"] // gpus) if gpus else 1 << 30) for node in nodes)
    if room == 0:
        most = max(nodes, key=lambda node: node["CPU"])
        raise UsageError(
            f"no node has {wanted.threads} CPUs and {gpus:g} GPUs for a replica, the largest has {most['CPU']:g} and "
            f"{most['GPU']:g}: name fewer --threads or --gpus"
        )
    return wanted, room


def first_line(error: BaseException) -> str:
    """The line of a Ray error that says what happened; Ray's messages go on for pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if any("ray::" in line for line in lines):  # a trace, with its error at the end
        return lines[-1].removeprefix("nopad.runtime.errors.")
    return lines[0]
