"""Our own /v1/classify, and /classify in vLLM's and Infinity's shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

TEXTS = ["splendid, go and see it", "a dull film"]
MULTI = "modernbert-multi-cls"
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
    (tokens,) = next(iter(server.models)).model.encoder.encode([TEXTS[0]])
    for ids in (tokens.input_ids, [tokens.input_ids]):
        (row,) = httpx.post(server.url + "/classify", json={"input": ids}).json()["data"]
        assert row["probs"] == pytest.approx(vllm["data"][0]["probs"], abs=1e-5)
    raw = httpx.post(server.url + "/classify", json={"input": TEXTS[0], "use_activation": False}).json()
    assert raw["data"][0]["probs"] == pytest.approx(list(map(float, answers[0].logits)), abs=1e-5)
    infinity = httpx.post(server.url + "/classify", json={"input": TEXTS, "model": "m", "raw_scores": False}).json()
    assert infinity["object"] == "classify"
    for rows, answer in zip(infinity["data"], answers, strict=True):
        assert {row["label"]: row["score"] for row in rows} == pytest.approx(answer.scores, abs=1e-5)


def test_long_texts_are_read_in_windows(serve: Serve) -> None:
    server = serve("default")
    model, long = next(iter(server.models)).model, "a dull film " * 600 + "splendid"
    url, asked = server.url + "/v1/classify", {"input": [long, "a film"], "truncation": "window"}
    wanted = model.predict([long, "a film"], truncation="window")
    rows = httpx.post(url, json=asked).json()["data"]
    assert [row["windows"] for row in rows] == [answer.windows for answer in wanted] and rows[0]["windows"] == 2
    assert [row["score"] for row in rows] == pytest.approx([answer.score for answer in wanted], abs=1e-5)
    assert rows[0]["tokens"] == rows[0]["tokens_used"] == wanted[0].tokens
    more = httpx.post(url, json={**asked, "stride": 500, "merge": "max"})
    assert more.json()["data"][0]["windows"] > rows[0]["windows"] and more.headers["x-nopad-truncated"] == "0"
    nested = httpx.post(server.url + "/predict", json={"inputs": [[long], ["a film"]], "truncation": "window"})
    assert [row[0]["score"] for row in nested.json()] == pytest.approx([answer.score for answer in wanted], abs=1e-5)
    hub = httpx.post(server.url, json={"inputs": long, "parameters": {"truncation": "window"}}).json()
    assert hub[0][0]["score"] == pytest.approx(wanted[0].score, abs=1e-5)
    for wrong, message in (
        ({"stride": 5000}, "never comes to its end"),
        ({"stride": -1}, "at least 0"),
        ({"merge": "median"}, "merge"),
        ({"truncation": "error"}, "must have less than"),
        ({"truncation": "truncate", "stride": 3}, "ask for truncation='window'"),
        ({"input": [long * 10], "stride": 1000}, "over the limit of 512"),
    ):
        refused = httpx.post(url, json={**asked, **wrong})
        assert refused.status_code == 422 and message in refused.json()["error"]["message"], wrong
    fields = httpx.get(server.url + "/openapi.json").json()["components"]["schemas"]
    for name in ("Classify", "Predict", "Embed"):
        assert {"truncation", "stride", "merge"} <= set(fields[name]["properties"])


def test_what_must_not_be_cut_is_refused_before_anything_runs(serve: Serve) -> None:
    server = serve("default")
    model, long = next(iter(server.models)).model, "a dull film " * 600
    ran = model.scheduler._worker.queue._run_tokens
    refused = httpx.post(server.url + "/v1/classify", json={"input": ["a film", long], "truncate": False})
    (tokens,) = model.encode([long])
    said = f"Input validation error: `inputs` must have less than 1025 tokens. Given: {tokens.tokens}"
    error = refused.json()["error"]
    assert (refused.status_code, error["message"], error["param"]) == (422, said, "input[1]")
    assert model.scheduler._worker.queue._run_tokens == ran


def test_odd_texts(serve: Serve) -> None:
    url = serve("default").url
    for text, status in (
        ('"\\ud83d"', 422),  # half of a surrogate pair
        ('"  \\n "', 422),
        ('""', 400),
        ('"\\u0000\\u0001"', 200),
        ('"\\ufffe\\uffff and \\u0000 a film"', 200),
    ):
        for route, body in (
            ("/v1/classify", f'{{"input": ["a film", {text}]}}'),
            ("/predict", f'{{"inputs": {text}}}'),
        ):
            answer = httpx.post(url + route, content=body.encode(), headers={"content-type": "application/json"})
            assert answer.status_code == status, (text, answer.text)
            if status != 200 and route == "/v1/classify":
                assert answer.json()["error"]["param"] == "input[1]", answer.text


@pytest.mark.slow
def test_a_text_of_1_mb(serve: Serve) -> None:
    url = serve("default").url + "/v1/classify"
    for huge in ("a dull film " * 80_000, "a" * 1_000_000):
        cut = httpx.post(url, json={"input": huge}, timeout=300).json()["data"][0]
        assert cut["tokens_used"] == 1024 < cut["tokens"]
    refused = httpx.post(url, json={"input": huge, "truncation": "window"}, timeout=300)
    assert refused.status_code == 422 and "over the limit of 512" in refused.json()["error"]["message"]
    assert httpx.post(url, json={"input": huge * 3}, timeout=300).status_code == 413
