"""/v1/explain: the model's own explanations over HTTP, behind whatever is interactive, and never without bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from raw_client import until
from running_server import slow

from nopad.runtime import Explanation

TEXTS = ["A dull film. But I loved it!", "🎬 splendid"]
Serve = Callable[..., Any]


@pytest.fixture
def server(serve: Serve) -> Iterator[Any]:
    server = serve("default")
    yield server
    until(lambda: server.serving.explaining == 0)


def ask(server: Any, headers: dict[str, str] | None = None, timeout: float = 60, **body: Any) -> httpx.Response:
    return httpx.post(server.url + "/v1/explain", json=body, headers=headers, timeout=timeout)


def model_of(server: Any) -> Any:
    return next(iter(server.models)).model


@pytest.mark.parametrize("options", [{}, {"method": "shapley", "unit": "token", "label": "positive"}])
def test_answers_are_those_of_the_model(server: Any, options: dict[str, str]) -> None:
    answer = ask(server, input=TEXTS, **options)
    body = answer.json()
    mine = {"by" if name == "unit" else name: value for name, value in options.items()}
    found = model_of(server).explain(TEXTS, **mine)
    for text, row, want in zip(TEXTS, body["data"], found, strict=True):
        assert isinstance(want, Explanation)
        assert (row["label"], row["method"], row["by"]) == (want.label, want.method, want.by)
        assert row["score"] == pytest.approx(want.score, abs=1e-6)
        assert (row["tokens"], row["tokens_used"], row["runs"]) == (want.tokens, want.tokens_used, want.runs)
        for one, other in zip(row["attributions"], want.attributions, strict=True):
            assert (one["start"], one["end"], one["text"]) == (other.start, other.end, other.text)
            assert one["text"] == text[one["start"] : one["end"]]  # characters, also after an emoji
            assert one["score"] == pytest.approx(other.score, abs=1e-4)
    assert body["model"] == "default" and body["usage"]["total_tokens"] == sum(each.tokens_used for each in found)
    assert answer.headers["x-nopad-engine"] == "onnx-cpu"
    assert "inference;dur=" in answer.headers["server-timing"]


def test_one_text_and_a_pair(server: Any) -> None:
    assert len(ask(server, input=TEXTS[0], by="sentence").json()["data"][0]["attributions"]) == 2
    (row,) = ask(server, input=[["a film", "a splendid film"]]).json()["data"]
    assert {each.get("part", 0) for each in row["attributions"]} == {0, 1}


def test_what_is_wrong_is_refused_and_says_what_to_do(server: Any) -> None:
    for body, status, words in (
        ({"input": "a", "label": "neutral"}, 422, "no label 'neutral'; it has negative, positive"),
        ({"input": "a", "method": "gradient-x-input"}, 422, "it can do occlusion and shapley"),
        ({"input": "a", "method": "lime"}, 422, "'occlusion', 'shapley'"),
        ({"input": "a", "unit": "page"}, 422, "'token', 'word' or 'sentence'"),
        ({"input": "a dull film", "budget": 2}, 422, "a budget of at least 5 runs"),
        ({"input": "a", "budget": 0}, 422, "greater than or equal to 1"),
        ({"input": ["a", " "]}, 422, "text 1: the text is empty"),
        ({"input": ""}, 400, "cannot be empty"),
        ({"input": []}, 400, "cannot be empty"),
        ({"input": ["a"] * 33}, 422, "batch size 33"),
        ({"input": "a", "truncation": "error", "unit": "word"}, 200, ""),
    ):
        answer = ask(server, **body)
        assert answer.status_code == status, answer.text
        if status != 200:
            assert words in answer.json()["error"]["message"]


def test_more_than_the_limit_is_refused_before_anything_runs(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("default", max_explain=200)
    chain, ran = model_of(server)._inference.chain, []
    monkeypatch.setattr(chain, "run", lambda batch, real=chain.run: ran.append(batch) or real(batch))
    assert ask(server, input="a dull film").status_code == 200  # 5 runs of 5 tokens
    before = len(ran)
    for body, words in (
        ({"input": "a dull film " * 5}, ["this text", "289", "200", "a shorter text", "unit sentence"]),
        ({"input": ["a dull film"] * 9, "unit": "token"}, ["these 9 texts", "225", "fewer texts"]),
        ({"input": "a " * 40, "method": "shapley", "budget": 10**15}, ["smaller budget", "method occlusion"]),
        ({"input": "a " * 900, "method": "shapley"}, ["method occlusion"]),
    ):
        answer = ask(server, **body)
        assert answer.status_code == 422
        assert all(word in answer.json()["error"]["message"] for word in words), answer.text
    assert len(ran) == before
    assert ask(serve("default", max_explain=0), input="a").status_code == 422


def test_interactive_requests_overtake_a_long_explanation(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seconds = model_of(server), 0.05
    slow(model, seconds, monkeypatch)
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ask(server, input="a dull film " * 60)))  # 33,000 tokens
    thread.start()
    until(lambda: model.scheduler.state().tokens > 0)
    waits = []
    for _ in range(5):
        begun = time.monotonic()
        assert httpx.post(server.url + "/predict", json={"inputs": "splendid"}).status_code == 200
        waits.append(time.monotonic() - begun)
        # The rest waits outside of the queue, which has room for others.
        assert model.scheduler.state().tokens <= 4 * model.token_budget
    assert not answers
    thread.join()
    assert answers[0].status_code == 200 and len(answers[0].json()["data"][0]["attributions"]) == 180
    assert sorted(waits)[2] < 20 * seconds  # the median; the explanation takes more than 60 micro-batches


def test_who_leaves_or_is_late_leaves_nothing_behind(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(server)
    slow(model, 0.05, monkeypatch)
    with pytest.raises(httpx.ReadTimeout):
        ask(server, timeout=0.5, input="a dull film " * 60)
    late = ask(server, {"x-request-timeout-ms": "300"}, input="a dull film " * 60)
    assert late.status_code == 408 and late.json()["error"]["type"] == "timeout"
    until(lambda: model.scheduler.state().tokens == 0 and server.serving.explaining == 0)


def test_too_many_at_once_are_refused(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server.serving, "explaining", 16)
        refused = ask(server, input="a")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
    assert ask(server, input="a").status_code == 200


def test_keys_metrics_and_the_openapi_document(serve: Serve, server: Any) -> None:
    assert ask(serve("default", keys=("secret",)), input="a").status_code == 401
    ask(server, input="a")
    assert (
        'nopad_requests_total{model="default",route="/v1/explain",status="200"}'
        in httpx.get(server.url + "/metrics").text
    )
    document = httpx.get(server.url + "/openapi.json").json()
    assert "post" in document["paths"]["/v1/explain"]
    assert {"input", "model", "label", "method", "unit", "budget"} <= set(
        document["components"]["schemas"]["Explain"]["properties"]
    )
