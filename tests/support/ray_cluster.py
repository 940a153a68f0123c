"""A Ray cluster of two nodes of one CPU each on this machine, one of which may be killed. Helpers, no tests."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

# A node waits 15 seconds for files in which its agents tell these, and a busy machine is slower: so they are given.
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
START_SECONDS = 600  # a busy machine may need more than the 30 that Ray gives a node


class Nodes:
    """The running cluster."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={**_node(), "include_dashboard": False})
        try:
            self._second = self._cluster.add_node(**_node())
            self._cluster.wait_for_nodes(START_SECONDS)
        except BaseException:
            self._cluster.shutdown()
            raise
        self.address: str = self._cluster.address

    def kill_second(self) -> None:
        """SIGKILL to all processes of the second node."""
        self._cluster.remove_node(self._second, allow_graceful=False)

    def shutdown(self) -> None:
        """End what is left."""
        self._cluster.shutdown()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _node() -> dict[str, int]:
    return {"num_cpus": 1, "object_store_memory": 80_000_000, **dict(zip(PORTS, free_ports(len(PORTS)), strict=True))}


@contextmanager
def patient() -> Iterator[pytest.MonkeyPatch]:
    """Clusters that are started meanwhile wait for a busy machine, report nothing, and need no token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")  # Ray's workers give way to all else
        patch.setenv("RAY_agent_register_timeout_ms", str(START_SECONDS * 1000))
        patch.setenv("RAY_worker_register_timeout_seconds", str(START_SECONDS))
        for name in ("READY", "HEALTH"):
            patch.setenv(f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S", "300")
        patch.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "2")
        yield patch


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """The cluster, as `patient`."""
    from ray._private import services
    from ray._private.node import Node

    with patient() as patch:
        patch.setattr(Node, "start_ray_processes", _with_ports(Node.start_ray_processes))
        patch.setattr(services, "get_node", _patiently(services.get_node))
        nodes = Nodes()
        try:
            yield nodes
        finally:
            nodes.shutdown()


def _with_ports(start: Callable[[Any], None]) -> Callable[[Any], None]:
    def started(node: Any) -> None:
        for name in PORTS:
            file = Path(node.get_session_dir_path(), f"{name}_{node._node_id}")
            file.write_text(str(getattr(node._ray_params, name)))
        start(node)

    return started


def _patiently(ask: Callable[..., Any]) -> Callable[..., Any]:
    def asked(*arguments: Any, **options: Any) -> Any:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                return ask(*arguments, **options)
            except RuntimeError:  # the node has not registered itself yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    return asked
