"""Rerankers under the names of others: Cohere's, Jina's, vLLM's and Infinity's /rerank, and vLLM's /score."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import AliasChoices, BaseModel, Discriminator, Field, Tag

from nopad.runtime.server.calls import Calling, Texts, priority_of, reply
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Reading
from nopad.runtime.server.routes import tei
from nopad.runtime.server.routes.openai import usage

router = APIRouter(tags=["Cohere, vLLM, Infinity"])


class Document(BaseModel):
    """A document of Cohere's first API."""

    text: str


class Documents(BaseModel):
    """Documents to be put in order by their relevance to the query."""

    model: str | None = None
    query: str
    documents: list[str | Document]
    top_n: int | None = Field(default=None, ge=0)  # 0 and null: all
    return_documents: bool | None = None
    raw_scores: bool = False
    use_activation: bool | None = None  # vLLM's: false gives logits, as raw_scores does
    priority: int | None = None  # Cohere's and vLLM's: 0, the default, goes before larger numbers


class Score(BaseModel):
    """One text with each of several, or two lists of one length, text by text."""

    model: str | None = None
    first: str | list[str] = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    second: str | list[str] = Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))
    use_activation: bool | None = None


def _form(body: Any) -> str:
    if isinstance(body, Documents):
        return "by documents"
    return "by documents" if isinstance(body, dict) and "documents" in body else "by texts"


Either = Annotated[
    Annotated[tei.Rerank, Tag("by texts")] | Annotated[Documents, Tag("by documents")], Discriminator(_form)
]


@router.post("/rerank")
async def either(body: Either, call: Calling) -> Response:
    """With `texts` as TEI answers, with `documents` as Cohere does."""
    return await (tei.rerank(body, call) if isinstance(body, tei.Rerank) else documents(body, call))


@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def documents(body: Documents, call: Calling) -> Response:
    """Documents by relevance to the query, the best first."""
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    raw = body.raw_scores or body.use_activation is False
    answered, order, scores = await tei.ranked(
        call, body.model, body.query, texts, Reading(), raw=raw, priority=priority_of(body.priority, highest=0)
    )
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": scores[index]} for index in order[: body.top_n or None]
    ]
    if body.return_documents:
        results = [{**row, "document": {"text": texts[row["index"]]}} for row in results]
    counts = usage(answered)
    return reply(
        {
            "id": uuid.uuid4().hex,
            "object": "rerank",
            "created": int(time.time()),
            "model": answered.served.name,
            "results": results,
            "usage": counts,
            "meta": {"tokens": {"input_tokens": counts["total_tokens"]}},
        },
        answered,
    )


@router.post("/score")
@router.post("/v1/score")
async def score(body: Score, call: Calling) -> Response:
    """VLLM's scores of pairs, in their order."""
    first = [body.first] if isinstance(body.first, str) else body.first
    second = [body.second] if isinstance(body.second, str) else body.second
    if len(first) not in (1, len(second)):
        raise Fault("validation", f"1 text with N, or N with N: these are {len(first)} with {len(second)}")
    served = call.find(body.model, "rerank")
    pairs = list(zip(first * (len(second) if len(first) == 1 else 1), second, strict=True))
    answered = await call.answer(served, Texts(pairs, True), logits=True)
    data = [
        {
            "index": index,
            "object": "score",
            "score": float(answer.logits[0]) if body.use_activation is False else answer.score,
        }
        for index, answer in enumerate(answered.answers)
    ]
    return reply(
        {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": served.name,
            "data": data,
            "usage": usage(answered),
        },
        answered,
    )
