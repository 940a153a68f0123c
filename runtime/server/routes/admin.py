"""Changing the served models. Asks for the admin key."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from nopad.runtime.server.calls import Call, Calling, reply
from nopad.runtime.server.swap import Change, Changed

router = APIRouter(prefix="/admin", tags=["admin"])


class ChangeBody(BaseModel):
    """What a model is to be replaced with."""

    model_config = ConfigDict(extra="forbid")
    bundle: str | None = Field(None, description="A folder below one of --model-dir; without it, the same bundle again")
    engine: str | None = None
    precision: str | None = None
    token_budget: int | None = Field(None, ge=1)
    allow_change: bool = Field(False, description="Another task, other labels or another size of embeddings is meant")


@router.get("/models")
async def models(call: Calling) -> Response:
    """The served models, and what is being changed."""
    return reply({"models": describe(call)})


@router.post("/models/{name}")
async def change(name: str, body: ChangeBody, call: Calling) -> Response:
    """Load a bundle, warm and check it, then let it answer in the place of the one that has this name."""
    wanted = Change(**body.model_dump())
    changed = await in_background(lambda: call.serving.swaps.swap(name, wanted))
    return reply(dataclasses.asdict(changed))


@router.delete("/models/{name}")
async def remove(name: str, call: Calling) -> Response:
    """Answer what the model has, then close it."""
    changed = await in_background(lambda: call.serving.swaps.unload(name))
    return reply(dataclasses.asdict(changed))


async def in_background(change: Callable[[], Changed]) -> Changed:
    """Change the models in another thread; the change goes on if the client leaves. Raises its `Fault`."""

    def outcome() -> Changed | Exception:  # returned, not raised: where the client has left, nobody asks for it
        try:
            return change()
        except Exception as error:
            return error

    got = await asyncio.shield(asyncio.to_thread(outcome))
    if isinstance(got, Exception):
        raise got
    return got


def describe(call: Call) -> list[dict[str, Any]]:
    """Each served model, and each name that is being changed or whose last change has failed."""
    served = {each.name: each for each in call.serving.models}
    progress = call.serving.swaps.progress
    rows: list[dict[str, Any]] = []
    for name in [*served, *(name for name in progress if name not in served)]:
        row: dict[str, Any] = {"name": name}
        if (each := served.get(name)) is not None:
            model = each.model
            row |= {
                "state": "serving",
                "version": each.version,
                "task": model.task,
                "bundle": str(model.bundle.path),
                "engine": model.status().engine,
                "precision": model.artifact.precision,
                "token_budget": model.token_budget,
                "memory": each.memory,
                "loaded": each.created,
            }
        else:
            row["state"] = progress[name].state
        row["change"] = dataclasses.asdict(progress[name]) if name in progress else None
        rows.append(row)
    return rows
