"""Whether the server lives and is ready, and what it counts. No key is asked for."""

from __future__ import annotations

from fastapi import APIRouter, Response

from nopad.runtime.server.calls import Calling
from nopad.runtime.server.metrics import CONTENT_TYPE

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the process answers."""
    return Response(status_code=200)


@router.get("/", include_in_schema=False)
@router.get("/ping", include_in_schema=False)
@router.get("/health")
@router.get("/health/ready")
async def ready(call: Calling) -> Response:
    """200 if requests are answered now, 503 while the server loads or drains, or its engine fails."""
    call.serving.require_healthy()
    return Response(status_code=200)


@router.get("/metrics")
async def metrics(call: Calling) -> Response:
    """Counts and durations for Prometheus."""
    serving = call.serving
    return Response(serving.metrics.text(serving.models, serving.running), media_type=CONTENT_TYPE)
