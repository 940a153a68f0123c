"""Our own /v1/explain: what the words of texts did for a label."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import AliasChoices, Field

from nopad.runtime.explain.explaining import Asked
from nopad.runtime.offline.answers import as_object
from nopad.runtime.server.calls import Calling, reply
from nopad.runtime.server.routes import tei
from nopad.runtime.server.routes.classify import Pair, texts_of
from nopad.runtime.server.routes.openai import usage
from nopad.runtime.types import By, Method, Removal

router = APIRouter(tags=["classify"])


class Explain(tei.Cut):
    """Texts to explain: a string or a list of texts and of pairs `[first, second]`.

    Without `label`, each text's own answer. `budget`: the most runs, or gradients, for one text.
    """

    input: str | list[str | Pair]
    model: str | None = None
    label: str | None = None
    method: Method = "occlusion"
    unit: By = Field(default="word", validation_alias=AliasChoices("unit", "by"))
    budget: int | None = Field(default=None, ge=1)
    removal: Removal = "drop"


@router.post("/v1/explain")
async def explain(body: Explain, call: Calling) -> Response:
    """For each text its label, and what each word, sentence or token of it, by its characters, did for the label.

    Runs behind interactive requests; more than the server's --max-explain tokens are refused before anything is run.
    """
    served = call.find(body.model, "text-classification", "rerank")
    asked = Asked(method=body.method, by=body.unit, label=body.label, budget=body.budget, removal=body.removal)
    answered = await call.explain(served, texts_of(body.input), asked, body.reading())
    data = [{"index": index, **as_object(each)} for index, each in enumerate(answered.answers)]
    return reply({"object": "list", "model": served.name, "data": data, "usage": usage(answered)}, answered)
