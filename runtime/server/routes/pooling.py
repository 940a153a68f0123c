"""vLLM's /pooling: what the model computes, of each text or, where it labels or embeds tokens, of each token."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Response
from pydantic import BaseModel

from nopad.model.head import BARE
from nopad.runtime.server.calls import Calling, priority_of, reply
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Answered
from nopad.runtime.server.routes.openai import usage
from nopad.runtime.server.routes.tei import InputIds, embed_texts
from nopad.runtime.server.vectors import base64_of, token_vectors_of, vectors_of
from nopad.runtime.types import FloatArray

router = APIRouter(tags=["vLLM"])


class Pooling(BaseModel):
    """Texts, or token ids of texts, which are decoded first."""

    input: str | InputIds | list[str | InputIds]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None  # of embeddings
    use_activation: bool | None = None  # false: logits, and embeddings of any length
    priority: int | None = None


@router.post("/pooling")
async def pooling(body: Pooling, call: Calling) -> Response:
    """Embeddings or the probabilities of all labels: of each text, or of each token, special ones too."""
    served = call.find(body.model, *BARE, "token-classification", "text-classification", "rerank")
    texts = embed_texts(body.input, served)
    answered = await call.answer(served, texts, logits=True, priority=priority_of(body.priority, highest=0))
    rows = _rows(answered, body)
    shown = map(base64_of, rows) if body.encoding_format == "base64" else rows
    return reply(
        {
            "id": f"pool-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": served.name,
            "data": [{"index": index, "object": "pooling", "data": row} for index, row in enumerate(shown)],
            "usage": usage(answered),
        },
        answered,
    )


def _rows(answered: Answered, body: Pooling) -> list[FloatArray]:
    """Of each text float32 [size], [labels], [tokens, size] or [tokens, labels]."""
    model, activated = answered.served.model, body.use_activation is not False
    if model.task == "embeddings":
        return list(vectors_of(answered, normalize=activated, dimensions=body.dimensions))
    if model.task == "token-embeddings":
        return token_vectors_of(answered, normalize=activated, dimensions=body.dimensions)
    head = model.manifest.head
    logits: list[Any] = [answer.logits for answer in answered.answers]
    rows = [np.asarray(head.probabilities(row) if activated else row, dtype=np.float32) for row in logits]
    if not all(np.isfinite(row).all() for row in rows):
        raise Fault("engine", "Backend error: score is NaN or infinite")
    return rows
