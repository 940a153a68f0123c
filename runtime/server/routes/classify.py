"""Classifiers under the names of vLLM and Infinity, and our own /v1/classify."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from nopad.runtime.server.calls import Calling, Texts, reply
from nopad.runtime.server.models import Answered
from nopad.runtime.server.routes import tei
from nopad.runtime.server.routes.openai import usage

router = APIRouter(tags=["classify"])
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class Classify(tei.Cut):
    """Texts to classify: a string or a list of texts and of pairs `[first, second]`."""

    input: str | list[str | Pair]
    model: str | None = None
    top_k: int | None = Field(default=None, ge=1)
    raw_scores: bool = False


class Labels(BaseModel):
    """vLLM's and Infinity's request. With `raw_scores` it is Infinity's, and answered as Infinity does.

    Texts, or token ids of texts, which are decoded first.
    """

    input: str | tei.InputIds | list[str | tei.InputIds]
    model: str | None = None
    raw_scores: bool | None = None
    use_activation: bool | None = None


@router.post("/v1/classify")
async def classify(body: Classify, call: Calling) -> Response:
    """For each text its label, all labels that apply, and the scores of the best `top_k`."""
    served = call.find(body.model, "text-classification", "rerank")
    answered = await call.answer(served, texts_of(body.input), body.reading(), logits=body.raw_scores)
    data = [
        {
            "index": index,
            "label": answer.label,
            "score": answer.score,
            "labels": answer.labels,
            "scores": tei.label_scores(answer, served, raw=body.raw_scores)[: body.top_k],
            "tokens": answer.tokens,
            "tokens_used": answer.tokens_used,
            "windows": answer.windows,
        }
        for index, answer in enumerate(answered.answers)
    ]
    return reply({"object": "list", "model": served.name, "data": data, "usage": usage(answered)}, answered)


@router.post("/classify")
async def of_others(body: Labels, call: Calling) -> Response:
    """VLLM's answer; Infinity's, where `raw_scores` is given."""
    served = call.find(body.model, "text-classification", "rerank")
    raw = body.raw_scores or body.use_activation is False
    answered = await call.answer(served, tei.embed_texts(body.input, served), logits=True)
    scores = [tei.label_scores(answer, served, raw=raw) for answer in answered.answers]
    if body.raw_scores is not None:
        return reply(_envelope("classify", scores, answered), answered)
    data = []
    for index, (answer, rows) in enumerate(zip(answered.answers, scores, strict=True)):
        by_label = {row["label"]: row["score"] for row in rows}
        probs = [by_label[label] for label in served.model.labels]
        data.append({"index": index, "label": answer.label, "probs": probs, "num_classes": len(probs)})
    return reply(_envelope("list", data, answered), answered)


def _envelope(kind: str, data: list[Any], answered: Answered) -> dict[str, Any]:
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": answered.served.name,
        "data": data,
        "usage": usage(answered),
    }


def texts_of(given: str | Sequence[str | list[str]]) -> Texts:
    """Texts and pairs as /v1/classify takes them."""
    if isinstance(given, str):
        return Texts([given], False)
    return Texts([item if isinstance(item, str) else (item[0], item[1]) for item in given], True)
