"""TEI's /vertex: several requests of the main task in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

Serve = Callable[..., Any]
TEXTS = ["splendid, go and see it", "a dull film"]


def test_each_instance_is_answered_as_on_its_own(serve: Serve) -> None:
    url = serve("default").url
    instances = [{"inputs": TEXTS[0]}, {"inputs": [[text] for text in TEXTS]}, {"inputs": TEXTS[1], "raw_scores": True}]
    answer = httpx.post(url + "/vertex", json={"instances": instances})
    alone = [httpx.post(url + "/predict", json=instance).json() for instance in instances]
    assert [len(body) for body in answer.json()["predictions"]] == [2, 2, 2]
    for found, wanted in zip(answer.json()["predictions"], alone, strict=True):
        flat = [row for rows in found for row in (rows if isinstance(rows, list) else [rows])]
        same = [row for rows in wanted for row in (rows if isinstance(rows, list) else [rows])]
        assert [row["label"] for row in flat] == [row["label"] for row in same]
        assert [row["score"] for row in flat] == pytest.approx([row["score"] for row in same], abs=1e-5)
    assert int(answer.headers["x-compute-characters"]) == 2 * sum(map(len, TEXTS))
    assert answer.headers["x-nopad-truncated"] == "0"


@pytest.mark.parametrize(
    ("instances", "status", "said"),
    [
        ([], 400, "cannot be empty"),
        ([{"inputs": "a"}] * 33, 422, "batch size 33"),
        ([{"inputs": "a"}, {"inputs": " "}, {"inputs": "a"}], 422, "text"),
        ([{"inputs": "a"}, {"texts": "a"}], 422, "inputs"),
        (["a"], 422, "instances.0"),
        (None, 422, "instances"),
    ],
)
def test_one_that_is_refused_refuses_all(serve: Serve, instances: Any, status: int, said: str) -> None:
    answer = httpx.post(serve("default").url + "/vertex", json={"instances": instances})
    assert answer.status_code == status and said in answer.json()["error"]
    assert set(answer.json()) == {"error", "error_type"}
