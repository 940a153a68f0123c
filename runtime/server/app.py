"""The FastAPI application: the routes of all protocols behind one gate."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from nopad.model.packages import version_of
from nopad.runtime.server.calls import Serving
from nopad.runtime.server.compress import Compress
from nopad.runtime.server.errors import Fault, Kind
from nopad.runtime.server.gate import Gate
from nopad.runtime.server.routes import (
    admin,
    classify,
    explain,
    health,
    hub,
    kserve,
    openai,
    pooling,
    repository,
    rerank,
    sparse,
    state,
    tei,
    ui,
    vertex,
)
from nopad.runtime.server.watch import Watch

DESCRIPTION = "A packed encoder behind the protocols of text-embeddings-inference and others: docs/http.md."
# FastAPI's own traces and logs, which send the messages of exceptions: those may quote a text.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
NAME = re.compile(r"(?!(str|int|dict)$)\w+")
KINDS: dict[int, Kind] = {400: "syntax", 404: "route", 405: "method", 413: "body"}


def create_app(serving: Serving) -> FastAPI:
    """The application over `serving`, whose models may still be loading: until then it answers 503."""
    app = FastAPI(
        title="nopad",
        version=version_of("nopad") or "",
        description=DESCRIPTION,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
    )
    app.state.serving = serving
    app.add_api_route("/api-doc/openapi.json", app.openapi, include_in_schema=False)  # TEI's place for it
    modules = (
        *(health, state, tei, hub, sparse, vertex, openai, rerank, classify, explain, pooling, kserve, repository),
        admin,
        *([ui] if serving.settings.ui else []),
    )
    routers = [each.router for each in modules]
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    if serving.settings.compress_from is not None:
        app.add_middleware(Compress, least=serving.settings.compress_from)
    app.add_middleware(Gate, serving=serving)
    app.add_middleware(Watch, serving=serving, routes=[route for router in routers for route in router.routes])
    if serving.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=serving.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    """JSON that is broken, or not what the route takes. The client's values are not repeated: they may be texts."""
    assert isinstance(error, RequestValidationError | ValidationError)
    problems: list[Any] = list(error.errors())
    if any(problem["type"] == "json_invalid" for problem in problems):
        raise Fault("syntax", "Failed to parse the request body as JSON")
    first = max(problems, key=lambda problem: len(problem["loc"]))  # of a union, the branch that fits best
    # ("body", "inputs", "list[str]", 3): names and positions, and the branches of unions, which say nothing.
    loc = first["loc"][isinstance(error, RequestValidationError) :]
    where = [str(part) for part in loc if isinstance(part, int) or NAME.fullmatch(part)]
    places = ".".join(where) or "the body"
    raise Fault("validation", f"Failed to deserialize the JSON body: {places}: {first['msg']}", field=places)


async def _refused(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: an unknown route, a wrong method, a body that is no text."""
    assert isinstance(error, HTTPException)
    kind = KINDS.get(error.status_code, "internal")
    said = {
        "syntax": "Failed to parse the request body as JSON",
        "route": f"no route {request.url.path}; /docs lists them",
        "method": f"{request.url.path} does not take {request.method}",
    }
    raise Fault(kind, said.get(kind, "internal error"))
