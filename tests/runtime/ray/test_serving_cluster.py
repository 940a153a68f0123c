"""`nopad serve --ray` on a real cluster of two nodes: replicas come and go, a command takes over, a node is killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'nopad[ray]'")
from ray_cluster import Nodes, free_ports, two_nodes
from ray_server import LONG_TEXTS, Callers, end_in_order, right, serving, until

from nopad.runtime.ray.serving import NAME, build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]  # one for all: Serve keeps that which it began with


@pytest.fixture
def driver(nodes: Nodes) -> Iterator[Any]:
    import ray
    from ray import serve

    ray.init(address=nodes.address, log_to_driver=False)
    yield serve
    ray.shutdown()


def running(serve: Any) -> int:
    (deployment,) = serve.status().applications[NAME].deployments.values()
    return deployment.replica_states.get("RUNNING", 0)


def test_tokens_that_wait_add_a_replica_and_it_goes_once_they_are_gone(driver: Any, port: int) -> None:
    driver.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})
    application = build({"replicas": "1:2", "tokens": 300, "up_seconds": 1, "down_seconds": 3})
    driver.run(application, name=NAME, route_prefix="/")
    assert running(driver) == 1
    url = f"http://127.0.0.1:{port}"
    busy = Callers(url, LONG_TEXTS)
    try:
        until(lambda: running(driver) == 2, "tokens that wait add a replica")
    finally:
        busy.stop()
    idle = Callers(url, ["a dull film"], count=1, pause=0.2)
    try:
        until(lambda: running(driver) == 1, "without them it is removed")
    finally:
        idle.stop()
    assert {each.status for each in (*busy.asked, *idle.asked)} == {200}
    assert right(busy.asked)
    driver.delete(NAME)


def test_another_command_takes_over_without_a_request_lost_and_the_first_leaves_it_alone(
    nodes: Nodes, port: int, tmp_path: Path
) -> None:
    on = ("--ray", nodes.address, "--replicas", "2")
    with serving(tmp_path, *on, port=port) as first:
        callers = Callers(first.url, LONG_TEXTS)
        try:
            until(lambda: callers.answered >= 6, "requests are answered")
            with serving(tmp_path, *on, "--max-batch", "64", port=port) as second:
                first.signal(signal.SIGTERM)
                assert first.wait() == 0, first.said
                before = callers.answered
                until(lambda: callers.answered >= before + 6, "the second answers on")
                callers.stop()
                assert {each.status for each in callers.asked} == {200}
                assert right(callers.asked)
                end_in_order(second, signal.SIGTERM)
        finally:
            callers.stop()


def test_a_replica_of_a_killed_node_is_replaced_and_what_is_answered_is_right(
    nodes: Nodes, port: int, tmp_path: Path, driver: Any
) -> None:
    with serving(tmp_path, "--ray", nodes.address, "--replicas", "2", port=port) as server:
        callers = Callers(server.url, LONG_TEXTS)
        try:
            until(lambda: running(driver) == 2 and callers.answered >= 6, "both answer")
            nodes.kill_second()
            until(lambda: running(driver) == 1, "the node is seen to be gone")
            before, seen = callers.answered, time.monotonic()
            until(lambda: callers.answered > before + 10, "the other replica answers")
        finally:
            callers.stop()
        late = [each for each in callers.asked if each.began > seen]
        assert right(callers.asked) and sum(each.status != 200 for each in late) <= len(late) / 2
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.said
