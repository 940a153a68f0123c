"""/health/state, and what /health/ready runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from running_server import Running, answers_with

from nopad.runtime.errors import EngineError, TextError
from nopad.runtime.server import forwards
from nopad.runtime.types import Failure

Serve = Callable[..., Running]


def test_the_state_tells_engines_queue_and_versions(serve: Serve) -> None:
    server = serve("default", keys=("k",))
    assert httpx.get(server.url + "/health/state").status_code == 401  # reasons may name files
    shown = httpx.get(server.url + "/health/state", headers={"authorization": "Bearer k"}).json()
    assert shown["status"] == "ready" and shown["versions"].keys() >= {"nopad", "onnxruntime", "python"}
    model = shown["models"]["default"]
    assert (model["ready"], model["degraded"], model["engine"]) == (True, False, "onnx-cpu")
    assert model["engines"][0].keys() >= {"name", "state", "batches", "failures", "reason"}
    assert model["queue"] == {"texts": 0, "tokens": 0} and model["running"] == {"texts": 0, "seconds": None}
    assert model["worker_deaths"] == 0


def test_another_engine_than_the_chosen_one_is_degraded_and_a_failing_one_unhealthy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("default")
    model = server.models.find(None).model
    with monkeypatch.context() as patch:
        status = dataclasses.replace(model.status(), degraded=True)
        patch.setattr(model, "status", lambda: status)
        assert httpx.get(server.url + "/health/state").json()["status"] == "degraded"
        assert httpx.get(server.url + "/health/ready").status_code == 200
    with monkeypatch.context() as patch:
        state = dataclasses.replace(model.scheduler.state(), ready=False, running=1, running_since=time.monotonic() - 9)
        patch.setattr(model.scheduler, "state", lambda: state)
        shown = httpx.get(server.url + "/health/state").json()
        assert shown["status"] == "unhealthy" and shown["models"]["default"]["running"]["seconds"] >= 9
    with monkeypatch.context() as patch:
        patch.setattr(server.serving, "draining", True)
        assert httpx.get(server.url + "/health/state").json()["status"] == "draining"
    assert httpx.get(server.url + "/health/state").json()["status"] == "ready"


def test_readiness_is_a_forward_of_a_moment_ago(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("default", max_queue=7)
    model = server.models.find(None).model
    ran: list[int] = []
    real = model._inference.chain.run
    monkeypatch.setattr(model._inference.chain, "run", lambda batch: ran.append(1) or real(batch))
    monkeypatch.setattr(forwards, "FRESH_SECONDS", 60.0)
    for route in ("/health/ready", "/health", "/v2/health/ready") * 2:
        assert httpx.get(server.url + route).status_code == 200
    assert len(ran) == 1
    monkeypatch.setattr(forwards, "FRESH_SECONDS", 0.0)
    assert httpx.get(server.url + "/health/ready").status_code == 200 and len(ran) == 2


def test_a_model_that_does_not_answer_the_forward_is_not_ready(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("default", max_queue=8)
    model = server.models.find(None).model
    monkeypatch.setattr(forwards, "FRESH_SECONDS", 0.0)

    def ready(*answers: Any) -> int:
        with monkeypatch.context() as patch:
            answers_with(model, list(answers), patch)
            return httpx.get(server.url + "/health/ready").status_code

    assert ready(Failure(index=0, error=EngineError("gone"))) == 503
    assert ready(Failure(index=0, error=TextError("no mask in it"))) == 200  # the engine ran
    with monkeypatch.context() as patch:

        async def late(*texts: Any, **options: Any) -> Any:
            raise EngineError("it died")

        patch.setattr(model, "aresults", late)
        answer = httpx.get(server.url + "/health/ready")
        assert answer.status_code == 503 and "'default' does not answer" in answer.json()["error"]
        assert "retry-after" in answer.headers
    assert httpx.get(server.url + "/health/ready").status_code == 200


def test_timings_are_shown_to_browsers_in_fractions_of_a_millisecond(serve: Serve) -> None:
    answer = httpx.post(serve("default").url + "/predict", json={"inputs": "a"})
    steps = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(steps) == ["tokenize", "queue", "inference", "total"]
    assert float(steps["total"]) >= float(steps["inference"]) > 0
    assert "server-timing" not in httpx.post(serve("default").url + "/predict", json={"inputs": 1}).headers
