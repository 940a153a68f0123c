"""TEI's /vertex, as Google's Vertex AI asks: several requests for the model's main task in one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from nopad.runtime.server.calls import Call, Calling, reply
from nopad.runtime.server.models import Answered
from nopad.runtime.server.routes import hub

router = APIRouter(tags=["text-embeddings-inference"])


class Instances(BaseModel):
    """Requests, each as `POST /` takes it."""

    instances: list[dict[str, Any]]


@router.post("/vertex")
async def vertex(body: Instances, call: Calling) -> Response:
    """The answer to each instance; if one is refused, all are, with its fault."""
    call.check_size(len(body.instances))
    tasks = [asyncio.ensure_future(_one(instance, call)) for instance in body.instances]
    try:
        parts = await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # of which one may have failed
            task.cancel()
    bodies, answers = zip(*parts, strict=True)
    answered = _together(answers)
    call.request.state.batch, call.request.state.answered = True, answered
    return reply({"predictions": [orjson.Fragment(each) for each in bodies]}, answered)


async def _one(instance: dict[str, Any], call: Call) -> tuple[bytes, Answered]:
    own = Call(Request({**call.request.scope, "state": {}}))
    answer = await hub.main_task(instance, own)
    return bytes(answer.body), own.request.state.answered


def _together(parts: Sequence[Answered]) -> Answered:
    """Of all texts the sums, and of the times the mean text's."""
    counts = [len(part.answers) for part in parts]

    def mean(name: str) -> float:
        return sum(getattr(part, name) * count for part, count in zip(parts, counts, strict=True)) / sum(counts)

    return dataclasses.replace(
        parts[0],
        answers=[answer for part in parts for answer in part.answers],
        characters=sum(part.characters for part in parts),
        seconds=max(part.seconds for part in parts),
        tokenizing=mean("tokenizing"),
        queued=mean("queued"),
        running=mean("running"),
    )
