"""Spoiled requests of every protocol: no 5xx, no crash, refusals in their route's shape, and the same answers after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fire_fuzz import from_openapi, fuzz, mutated
from fire_requests import Sent, frame, valid_requests

Serve = Callable[..., Any]
OTHERS = ("modernbert-embed-cls", "modernbert-rerank", "modernbert-token", "modernbert-mlm")


@pytest.fixture(scope="module")
def app(serve: Serve) -> Any:
    from nopad.runtime.server.app import create_app

    return create_app(serve("default").serving)


def test_spoiled_requests_are_refused_in_order(app: Any) -> None:
    outcome = asyncio.run(fuzz(app, mutated(0, 300, ["default"])))
    assert not outcome.examples
    assert {200, 400, 404, 422} <= set(outcome.statuses)
    again = asyncio.run(fuzz(app, [Sent("POST", "/predict", b'{"inputs": "a"}', {"content-type": "application/json"})]))
    assert again.statuses == {200: 1}


@pytest.mark.slow
def test_requests_of_the_openapi_document_are_answered_in_order(app: Any) -> None:
    pytest.importorskip("schemathesis")
    outcome = asyncio.run(fuzz(app, from_openapi(app, 0, 300)))
    assert not outcome.examples and outcome.statuses[200]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_spoiled_requests_to_models_of_every_task(serve: Serve, name: str) -> None:
    from nopad.runtime.server.app import create_app

    app = create_app(serve(name).serving)
    outcome = asyncio.run(fuzz(app, mutated(1, 1_000, [name])))
    assert not outcome.examples


def test_the_requests_that_are_spoiled_are_good_ones(app: Any) -> None:
    outcome = asyncio.run(fuzz(app, valid_requests(["default"])))
    assert not outcome.examples and outcome.statuses[200] >= 20


@pytest.mark.parametrize("timeout", [10**12, 10**30, 10**400, True])
def test_a_timeout_beyond_what_timers_count_is_no_fault_of_the_server(app: Any, timeout: int) -> None:
    body = frame("/v2/models/default/infer", ["a"])
    body = Sent(
        "POST",
        body.path,
        f'{{"inputs": [{{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}}],'
        f'"parameters": {{"timeout": {str(timeout).lower()}}}}}'.encode(),
    )
    outcome = asyncio.run(fuzz(app, [body]))
    assert not outcome.examples and set(outcome.statuses) <= {200, 400, 408}
