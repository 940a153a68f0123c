"""TEI's /embed_sparse, of a fill-mask model with SPLADE pooling."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import APIRouter, Response

from nopad.runtime.decode import splade
from nopad.runtime.server.calls import Calling, reply, to_json
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Answered
from nopad.runtime.server.routes.tei import EmbedTokens, embed_texts
from nopad.runtime.types import Sparse

router = APIRouter(tags=["text-embeddings-inference"])
NOT_SPARSE = "Model is not an embedding model with SPLADE pooling: /embed_sparse needs a fill-mask model"


@router.post("/embed_sparse")
async def embed_sparse(body: EmbedTokens, call: Calling) -> Response:
    """Of each text the vocabulary entries with a weight, SPLADE's."""
    try:
        served = call.find(None, "fill-mask")
    except Fault as fault:
        raise Fault("task", NOT_SPARSE) if fault.kind == "task" else fault from None
    if body.truncation == "window":
        raise Fault(
            "validation", "truncation: /embed_sparse does not read windows; it cuts, or refuses", field="truncation"
        )
    texts = embed_texts(body.inputs, served)
    # Decoded as they come: the logits of a text are a row of the vocabulary for each token.
    answered = await call.answer(served, texts, body.reading(body.prompt_name), decoder=splade)
    return await asyncio.to_thread(_sparse_reply, answered)  # of a model that is not sparse, half the vocabulary each


def _sparse_reply(answered: Answered) -> Response:
    return reply([orjson.Fragment(_row(answer)) for answer in answered.answers], answered)


def _row(answer: Sparse) -> bytes:
    rows = zip(answer.indices.tolist(), answer.values, strict=True)
    return to_json([{"index": index, "value": value} for index, value in rows])
