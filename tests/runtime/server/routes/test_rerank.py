"""Rerankers under other names: the unmodified cohere clients, vLLM's and Infinity's requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
cohere = pytest.importorskip("cohere", reason="cohere is not installed")

RERANK = "modernbert-rerank"
QUERY, TEXTS = "which film", ["splendid, go and see it", "a dull film", "an hour of my life"]
Serve = Callable[..., Any]


@pytest.fixture
def wanted(serve: Serve) -> list[tuple[int, Any]]:
    model = next(iter(serve(RERANK).models)).model
    return [(row.index, pytest.approx(row.score, abs=1e-5)) for row in model.rerank(QUERY, TEXTS)]


@pytest.fixture
def session() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60) as opened:
        yield opened


def test_both_clients_of_cohere(serve: Serve, wanted: Any, session: httpx.Client) -> None:
    url = serve(RERANK).url
    second = cohere.ClientV2(api_key="key", base_url=url, httpx_client=session)
    v2 = second.rerank(model=RERANK, query=QUERY, documents=TEXTS)
    assert [(row.index, row.relevance_score) for row in v2.results] == wanted and v2.id
    v1 = cohere.Client("key", base_url=url, httpx_client=session).rerank(
        model=RERANK, query=QUERY, documents=[TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]], top_n=2, return_documents=True
    )
    assert [(row.index, row.relevance_score) for row in v1.results] == wanted[:2]
    assert [row.document.text for row in v1.results] == [TEXTS[index] for index, _ in wanted[:2]]


def test_coheres_priority_reaches_the_scheduler(
    serve: Serve, session: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(RERANK)
    scheduler = next(iter(server.models)).model.scheduler
    real, seen = scheduler.submit, []
    monkeypatch.setattr(scheduler, "submit", lambda *texts, **how: seen.append(how["priority"]) or real(*texts, **how))
    client = cohere.ClientV2(api_key="key", base_url=server.url, httpx_client=session)
    for priority in (None, 0, 5):
        given = {} if priority is None else {"priority": priority}
        client.rerank(model=RERANK, query=QUERY, documents=TEXTS, **given)
    assert seen == ["interactive", "interactive", "batch"]


def test_coheres_clients_show_what_is_wrong(serve: Serve, session: httpx.Client) -> None:
    for make in (cohere.ClientV2, cohere.Client):
        client = make(api_key="key", base_url=serve(RERANK).url, httpx_client=session)
        with pytest.raises(cohere.errors.UnprocessableEntityError) as caught:
            client.rerank(model=RERANK, query=QUERY, documents=["a", " "])
        assert "text 1" in caught.value.body["message"]
        with pytest.raises(cohere.errors.UnauthorizedError):
            closed = serve(RERANK, keys=("other",)).url
            make(api_key="key", base_url=closed, httpx_client=session).rerank(
                model=RERANK, query=QUERY, documents=["a"]
            )


def test_on_rerank_the_field_decides(serve: Serve, wanted: Any) -> None:
    url = serve(RERANK).url + "/rerank"
    tei = httpx.post(url, json={"query": QUERY, "texts": TEXTS}).json()
    assert [(row["index"], row["score"]) for row in tei] == wanted
    other = httpx.post(url, json={"model": "m", "query": QUERY, "documents": TEXTS, "top_n": 0}).json()
    assert [(row["index"], row["relevance_score"]) for row in other["results"]] == wanted
    assert other["object"] == "rerank" and other["usage"]["prompt_tokens"] == other["usage"]["total_tokens"] > 0
    raw = httpx.post(url, json={"query": QUERY, "documents": TEXTS, "raw_scores": True}).json()
    assert [row["index"] for row in raw["results"]] == [index for index, _ in wanted]
    assert raw["results"][0]["relevance_score"] != wanted[0][1]
    same = httpx.post(url, json={"query": QUERY, "documents": TEXTS, "use_activation": False}).json()
    assert same["results"] == raw["results"]
    for body, status in (
        ({"query": QUERY, "documents": []}, 400),
        ({"query": QUERY, "documents": ["a"] * 33}, 422),
        ({"query": QUERY}, 422),
        ({"documents": ["a"]}, 422),
        ({"query": QUERY, "documents": ["a"], "top_n": -1}, 422),
    ):
        answer = httpx.post(url, json=body)
        assert answer.status_code == status and answer.json()["error"]


def test_scores_of_pairs(serve: Serve, wanted: Any) -> None:
    url = serve(RERANK).url + "/score"
    by_index = [score for _, score in sorted(wanted, key=lambda row: row[0])]
    for body in (
        {"text_1": QUERY, "text_2": TEXTS},
        {"queries": [QUERY] * 3, "documents": TEXTS},
        {"data_1": [QUERY], "data_2": TEXTS},
    ):
        answer = httpx.post(url, json=body).json()
        assert [row["score"] for row in answer["data"]] == by_index
    assert len(httpx.post(url, json={"text_1": QUERY, "text_2": "a"}).json()["data"]) == 1
    same = httpx.post(serve(RERANK).url + "/v1/score", json={"text_1": QUERY, "text_2": TEXTS}).json()
    assert [row["score"] for row in same["data"]] == by_index
    uneven = httpx.post(url, json={"text_1": [QUERY] * 2, "text_2": TEXTS})
    assert uneven.status_code == 422 and "2 with 3" in uneven.json()["error"]
