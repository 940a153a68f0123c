"""Whether the server lives and is ready, for load balancers and TEI's clients. No key is asked for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from nopad.runtime.server.calls import Call

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the process answers."""
    return Response(status_code=200)


@router.get("/", include_in_schema=False)
@router.get("/ping", include_in_schema=False)
@router.get("/health")
@router.get("/health/ready")
async def ready(call: Annotated[Call, Depends()]) -> Response:
    """200 if requests are answered now, 503 while the server loads or drains."""
    call.serving.require_ready()
    return Response(status_code=200)
