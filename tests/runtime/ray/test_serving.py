"""A replica and the autoscaling policy without Ray's processes; `test_serving_cluster.py` has real nodes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from running_server import held

from nopad.runtime.errors import UsageError
from nopad.runtime.predictor import load
from nopad.runtime.ray.serving import QUEUED, ByTokens, Replica, Scale, build
from nopad.runtime.server.settings import Job, Settings


@pytest.fixture
def replica() -> Iterator[Any]:
    made = object.__new__(Replica)
    job = Job(settings=Settings(max_batch=4), bundles={"default": None}, options={"threads": 1})
    asyncio.run(Replica.__init__(made, job))  # type: ignore[misc]  # as Ray Serve does, in an event loop
    yield made
    made.__del__()


async def ask(replica: Any, method: str, path: str, **request: Any) -> httpx.Response:
    transport = httpx.ASGITransport(replica.__serve_build_asgi_app__())
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        return await client.request(method, path, **request)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_replica_has_the_servers_routes_limits_and_answers(replica: Any) -> None:
    async def all_of_them() -> list[httpx.Response]:
        texts = {"json": {"inputs": [["splendid"], ["dull"]]}}
        return [
            await ask(replica, "POST", "/predict", **texts),
            await ask(replica, "POST", "/predict", json={"inputs": [["a"]] * 5}),
            await ask(replica, "HEAD", "/health/ready"),
            await ask(replica, "GET", "/metrics"),
        ]

    answered, refused, head, metrics = asyncio.run(all_of_them())
    with load(threads=1) as model:
        wanted = [each.score for each in model.predict(["splendid", "dull"])]
    assert [rows[0]["score"] for rows in answered.json()] == pytest.approx(wanted, abs=1e-6)
    assert refused.status_code == 422 and head.status_code == 200 and "nopad_" in metrics.text


def test_its_health_is_the_servers_and_it_tells_the_tokens_that_wait_and_run(
    replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(replica.check_health())
    until(lambda: replica.record_autoscaling_stats() == {QUEUED: 0.0})
    (served,) = replica._models
    go = threading.Event()
    held(served.model, go, monkeypatch)
    asking = threading.Thread(target=lambda: served.model.predict(["a dull film"] * 20))
    asking.start()
    until(lambda: served.model.scheduler.state().running == 20)
    state = served.model.scheduler.state()
    assert state.running_tokens >= 20 * 3
    assert replica.record_autoscaling_stats() == {QUEUED: float(state.tokens + state.running_tokens)}
    asyncio.run(replica.check_health())  # busy is healthy
    go.set()
    asking.join()
    until(lambda: replica.record_autoscaling_stats() == {QUEUED: 0.0})


def test_a_replica_that_drains_refuses_what_is_new_ends_what_runs_and_is_not_replaced_meanwhile(
    replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (served,) = replica._models
    go = threading.Event()
    held(served.model, go, monkeypatch)

    async def through_the_end() -> tuple[httpx.Response, httpx.Response]:
        asked = {"json": {"inputs": [["splendid"]]}}
        runs = asyncio.create_task(ask(replica, "POST", "/predict", **asked))
        while not replica._serving.running:
            await asyncio.sleep(0.01)
        drains = asyncio.create_task(replica.drain())
        while not replica._serving.draining:
            await asyncio.sleep(0.01)
        refused = await ask(replica, "POST", "/predict", **asked)
        await replica.check_health()
        assert not runs.done() and not drains.done()
        go.set()
        answered = await runs
        await drains
        return answered, refused

    answered, refused = asyncio.run(through_the_end())
    assert answered.status_code == 200 and refused.status_code == 503


@given(st.dictionaries(st.integers(), st.floats(0, 1e6), min_size=1), st.integers(1, 10_000))
def test_there_are_as_many_replicas_as_the_tokens_in_them_want(counts: dict[int, float], tokens: int) -> None:
    wanted, _ = ByTokens(tokens)(SimpleNamespace(aggregated_metrics={QUEUED: counts}, target_num_replicas=1))
    total = sum(counts.values())
    assert wanted >= 1 and wanted * tokens >= total * (1 - 1e-9) and (wanted == 1 or (wanted - 1) * tokens < total)


@pytest.mark.parametrize("metrics", [None, {}, {QUEUED: {}}])
def test_before_a_replica_has_told_nothing_changes(metrics: Any) -> None:
    assert ByTokens(1)(SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=3)) == (3, {})


def test_replicas_are_a_number_or_a_range() -> None:
    assert Scale.parse("3") == Scale(least=3, most=3)
    assert Scale.parse("1:8", tokens=9) == Scale(least=1, most=8, tokens=9)
    for wrong in ("0", "2:1", "1:", "x", "1:2:3", ""):
        with pytest.raises(UsageError, match="--replicas"):
            Scale.parse(wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"bundle": ["x"]}, "bundle: unknown"), ({"metrics_port": 1}, "--metrics-port"), ({"replicas": "9:1"}, "LEAST")],
)
def test_a_configuration_that_is_wrong_is_told(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build(arguments)
