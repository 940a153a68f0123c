"""Triton's model repository extension of KServe's v2 protocol, over the same changes as `/admin`."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from nopad.runtime.server.calls import Calling, reply
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.routes.admin import ChangeBody, describe, in_background
from nopad.runtime.server.swap import Change

router = APIRouter(prefix="/v2/repository", tags=["KServe v2"])


class LoadBody(BaseModel):
    """As tritonclient sends it: `config` is a model configuration in JSON, `file:...` a file to be stored."""

    model_config = ConfigDict(extra="ignore")
    parameters: dict[str, Any] = {}


LOAD_BODY = {"requestBody": {"content": {"application/json": {"schema": LoadBody.model_json_schema()}}}}


@router.post("/index")
async def index(call: Calling) -> Response:
    """The served models, and those that are being changed or could not be."""
    rows = []
    for each in describe(call):
        change, row = each["change"], {"name": each["name"]}
        if each["state"] == "serving":
            row |= {"version": str(each["version"]), "state": "READY"}
        else:
            row["state"] = "UNAVAILABLE" if each["state"] == "failed" else "LOADING"
        if change is not None:
            # Whoever has an API key may ask; why it failed may name files, and is for the admin key.
            row["reason"] = f"{change['failed']} failed" if change["failed"] else change["state"]
        rows.append(row)
    return reply(rows)


@router.post("/models/{name}/load", openapi_extra=LOAD_BODY)
async def load(name: str, call: Calling, request: Request) -> Response:
    """Load a model, or load it again: from the bundle that it has or had, else from the folder of this name."""
    body = LoadBody.model_validate_json(await request.body() or b"{}")  # tritonclient sends no content type
    change = _change(body.parameters)
    await in_background(lambda: call.serving.swaps.swap(name, change))
    return Response(status_code=200)


@router.post("/models/{name}/unload")
async def unload(name: str, call: Calling) -> Response:
    """Answer what the model has, then close it."""
    await in_background(lambda: call.serving.swaps.unload(name))
    return Response(status_code=200)


def _change(parameters: dict[str, Any]) -> Change:
    """The change that a configuration asks for in its `parameters`: `{"bundle": {"string_value": "..."}}`."""
    for name in parameters:
        if name != "config":
            raise Fault("validation", f"the parameter {name!r} is not supported: bundles are loaded from --model-dir")
    try:
        config = json.loads(parameters.get("config", "{}"))
        given = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    except (TypeError, ValueError, KeyError, AttributeError):
        raise Fault(
            "validation", 'config is a JSON object, whose parameters are {"bundle": {"string_value": "..."}}'
        ) from None
    return Change(**ChangeBody.model_validate(given).model_dump())
