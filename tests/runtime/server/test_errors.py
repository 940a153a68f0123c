"""The table of faults: its statuses and shapes by route."""

from __future__ import annotations

from typing import get_args

import pytest

from nopad.runtime.errors import (
    BundleError,
    DeadlineError,
    DrainingError,
    EngineError,
    EnvironmentProblem,
    OverloadedError,
    TextError,
    UsageError,
)
from nopad.runtime.server.errors import FAULTS, Fault, Kind, body_of, fault_of, headers_of, shape_of, status_of


def test_every_kind_of_fault_has_its_row() -> None:
    assert set(FAULTS) == set(get_args(Kind))


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        *(("/predict", "tei"), ("/", "tei"), ("/rerank", "tei"), ("/classify", "tei"), ("/v2/rerank", "tei")),
        *(("/v1/embeddings", "openai"), ("/v1/rerank", "openai"), ("/v1/classify", "openai")),
        *(("/v2", "kserve"), ("/v2/models/m/infer", "kserve"), ("/v2x", "tei")),
    ],
)
def test_the_route_decides_the_shape(path: str, shape: str) -> None:
    assert shape_of(path) == shape


@pytest.mark.parametrize(
    ("error", "statuses"),
    [
        (TextError("bad"), (422, 422, 400)),
        (UsageError("bad"), (422, 422, 400)),
        (EngineError("NaN"), (424, 500, 500)),
        (EnvironmentProblem("no memory"), (500, 500, 500)),
        (BundleError("damaged"), (500, 500, 500)),
        (KeyError("a secret text"), (500, 500, 500)),
        (Fault("task", "Model is not a classifier model"), (424, 400, 400)),
        (OverloadedError("full"), (429, 429, 429)),
        (DrainingError("ends"), (503, 503, 503)),
        (DeadlineError("late"), (408, 408, 408)),
    ],
)
def test_a_fault_has_one_status_but_where_clients_do_not_know_it(
    error: Exception, statuses: tuple[int, int, int]
) -> None:
    fault = fault_of(error)
    assert tuple(status_of(fault, shape) for shape in ("tei", "openai", "kserve")) == statuses
    assert "secret" not in fault.message


def test_the_three_shapes() -> None:
    fault = fault_of(TextError("is empty"), 3)
    assert body_of(fault, "tei", "/predict") == {"error": "text 3: is empty", "error_type": "Tokenizer", "index": 3}
    assert body_of(fault, "openai", "/v1/embeddings") == {
        "error": {"message": "text 3: is empty", "type": "invalid_request_error", "param": "input[3]", "code": None}
    }
    assert body_of(fault, "kserve", "/v2/models/m/infer") == {"error": "text 3: is empty"}
    assert body_of(fault, "tei", "/v2/rerank")["message"] == "text 3: is empty"  # where Cohere's client looks


def test_who_should_come_back_is_told_when() -> None:
    assert headers_of(fault_of(OverloadedError("full", retry_after=1.25))) == {
        "retry-after": "2",
        "retry-after-ms": "1250",
    }
    assert headers_of(Fault("unavailable", "loading"))["retry-after"] == "1"
    assert headers_of(Fault("unauthorized", "who?")) == {"www-authenticate": "Bearer"}
    assert headers_of(Fault("text", "bad")) == {}
