"""vLLM's /pooling."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

Serve = Callable[..., Any]
TEXTS = ["splendid, go and see it", "a dull film"]


def test_a_classifier_gives_probabilities_or_logits(serve: Serve) -> None:
    server = serve("default")
    model = next(iter(server.models)).model
    answers = model.predict(TEXTS, return_logits=True)
    body = httpx.post(server.url + "/pooling", json={"input": TEXTS, "model": "m"}).json()
    assert body["object"] == "list" and body["model"] == "default" and body["id"].startswith("pool-")
    assert body["usage"]["prompt_tokens"] == sum(answer.tokens_used for answer in answers)
    for index, (row, answer) in enumerate(zip(body["data"], answers, strict=True)):
        assert (row["index"], row["object"]) == (index, "pooling")
        assert row["data"] == pytest.approx([answer.scores[label] for label in model.labels], abs=1e-5)
    ask = {"input": TEXTS[0], "use_activation": False, "encoding_format": "base64", "priority": 3}
    (row,) = httpx.post(server.url + "/pooling", json=ask).json()["data"]
    assert np.frombuffer(base64.b64decode(row["data"]), "<f4") == pytest.approx(answers[0].logits, abs=1e-5)


@pytest.mark.slow  # it exports a bundle
def test_a_token_classifier_gives_a_row_for_each_token(serve: Serve) -> None:
    server = serve("modernbert-token")
    logits = next(iter(server.models)).model.logits(TEXTS)
    raw = httpx.post(server.url + "/pooling", json={"input": TEXTS, "use_activation": False}).json()["data"]
    for row, wanted in zip(raw, logits, strict=True):
        assert np.allclose(row["data"], wanted, atol=1e-4)
    scores = httpx.post(server.url + "/pooling", json={"input": TEXTS[0]}).json()["data"][0]["data"]
    assert np.asarray(scores).shape == logits[0].shape and np.allclose(np.sum(scores, axis=1), 1, atol=1e-5)


def test_what_is_no_input_is_refused(serve: Serve) -> None:
    url = serve("default").url + "/pooling"
    for body, status in (({"input": []}, 400), ({"input": ["a", " "]}, 422), ({"input": 3}, 422), ({}, 422)):
        answer = httpx.post(url, json=body)
        assert answer.status_code == status and answer.json()["error"]
