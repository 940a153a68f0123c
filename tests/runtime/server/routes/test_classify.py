"""Our own /v1/classify, and /classify in vLLM's and Infinity's shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

TEXTS = ["splendid, go and see it", "a dull film"]
MULTI = "modernbert-multi-mean"
Serve = Callable[..., Any]


def test_our_own_route_has_labels_scores_and_usage(serve: Serve) -> None:
    server = serve(MULTI)
    answers = next(iter(server.models)).model.predict(TEXTS, return_logits=True)
    body = httpx.post(server.url + "/v1/classify", json={"input": TEXTS}).json()
    assert body["model"] == MULTI and body["usage"]["total_tokens"] == sum(answer.tokens_used for answer in answers)
    for row, answer in zip(body["data"], answers, strict=True):
        assert (row["label"], tuple(row["labels"])) == (answer.label, answer.labels)
        assert {score["label"]: score["score"] for score in row["scores"]} == pytest.approx(answer.scores, abs=1e-5)
        assert (row["tokens"], row["tokens_used"]) == (answer.tokens, answer.tokens_used)
    best = httpx.post(server.url + "/v1/classify", json={"input": TEXTS[0], "top_k": 1, "raw_scores": True}).json()
    (score,) = best["data"][0]["scores"]
    assert score["score"] == pytest.approx(float(answers[0].logits.max()), abs=1e-5)
    pair = httpx.post(server.url + "/v1/classify", json={"input": [[TEXTS[0], TEXTS[1]]]})
    assert pair.status_code == 200 and len(pair.json()["data"]) == 1


def test_several_models_by_name(serve: Serve) -> None:
    url = serve("default", MULTI).url + "/v1/classify"
    assert httpx.post(url, json={"input": "a"}).json()["model"] == "default"
    assert httpx.post(url, json={"input": "a", "model": MULTI}).json()["model"] == MULTI
    unknown = httpx.post(url, json={"input": "a", "model": "x"})
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"


def test_what_is_wrong_is_said_in_the_routes_shape(serve: Serve) -> None:
    url = serve("default").url + "/v1/classify"
    for body, status, param in (
        ({"input": ["a", " "]}, 422, "input[1]"),
        ({"input": []}, 400, None),
        ({"input": "a", "top_k": 0}, 422, "top_k"),
        ({"input": [["a"]]}, 422, "input.0"),
    ):
        answer = httpx.post(url, json=body)
        assert answer.status_code == status and answer.json()["error"]["param"] == param


def test_vllms_and_infinitys_shapes(serve: Serve) -> None:
    server = serve("default")
    model = next(iter(server.models)).model
    answers = model.predict(TEXTS, return_logits=True)
    vllm = httpx.post(server.url + "/classify", json={"input": TEXTS, "model": "m"}).json()
    assert vllm["object"] == "list" and vllm["id"].startswith("classify-")
    for row, answer in zip(vllm["data"], answers, strict=True):
        assert row["probs"] == pytest.approx([answer.scores[label] for label in model.labels], abs=1e-5)
        assert (row["label"], row["num_classes"]) == (answer.label, 2)
    (tokens,) = next(iter(server.models)).encoder.encode([TEXTS[0]])
    for ids in (tokens.input_ids, [tokens.input_ids]):
        (row,) = httpx.post(server.url + "/classify", json={"input": ids}).json()["data"]
        assert row["probs"] == pytest.approx(vllm["data"][0]["probs"], abs=1e-5)
    raw = httpx.post(server.url + "/classify", json={"input": TEXTS[0], "use_activation": False}).json()
    assert raw["data"][0]["probs"] == pytest.approx(list(map(float, answers[0].logits)), abs=1e-5)
    infinity = httpx.post(server.url + "/classify", json={"input": TEXTS, "model": "m", "raw_scores": False}).json()
    assert infinity["object"] == "classify"
    for rows, answer in zip(infinity["data"], answers, strict=True):
        assert {row["label"]: row["score"] for row in rows} == pytest.approx(answer.scores, abs=1e-5)
