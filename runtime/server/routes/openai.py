"""OpenAI's routes: /v1/embeddings and /v1/models."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from nopad.runtime.server.calls import Calling, reply
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Answered, Served
from nopad.runtime.server.routes.tei import InputIds, embed_texts
from nopad.runtime.server.vectors import base64_of, vectors_of

router = APIRouter(tags=["OpenAI"])


class Embeddings(BaseModel):
    """Texts, or token ids of texts, which are decoded first."""

    input: str | InputIds | list[str | InputIds]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


@router.post("/embeddings", include_in_schema=False)
@router.post("/v1/embeddings")
async def embeddings(body: Embeddings, call: Calling) -> Response:
    """Embeddings of length 1, as lists of numbers or as little-endian float32 in base64."""
    served = call.find(body.model, "embeddings")
    answered = await call.answer(served, embed_texts(body.input, served))
    vectors = vectors_of(answered, normalize=True, dimensions=body.dimensions)
    shown = map(base64_of, vectors) if body.encoding_format == "base64" else vectors
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(shown)]
    return reply({"object": "list", "data": data, "model": served.name, "usage": usage(answered)}, answered)


@router.get("/v1/models")
async def models(call: Calling) -> Response:
    """The served models."""
    call.serving.require_ready()
    return reply({"object": "list", "data": [_model(served) for served in call.serving.models]})


@router.get("/v1/models/{name:path}")
async def model(name: str, call: Calling) -> Response:
    """One served model."""
    call.serving.require_ready()
    for served in call.serving.models:
        if served.name == name:
            return reply(_model(served))
    raise Fault("model", f"no model named {name!r} is served here", field="model", code="model_not_found")


def usage(answered: Answered) -> dict[str, int]:
    """Tokens that reached the model, special tokens included, as OpenAI counts them."""
    return {"prompt_tokens": answered.tokens, "total_tokens": answered.tokens}


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "nopad"}
