"""How the server is, in detail, for people: the engines of each model, its queue, and what has gone wrong."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response

from nopad.model.packages import version_of
from nopad.runtime.server.calls import Calling, Serving, reply
from nopad.runtime.server.models import Served

router = APIRouter(tags=["health"])
VERSIONS = ("nopad", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt_rtx", "torch", "tokenizers")


@router.get("/health/state")
async def state(call: Calling) -> Response:
    """Always 200: what `status` is, and why. Asks for a key where the server does, since reasons may name files."""
    serving = call.serving
    models = {served.name: _model(served) for served in serving.models}
    versions = {name: version for name in VERSIONS if (version := version_of(name))}
    return reply(
        {
            "status": _status(serving, models),
            "requests_running": serving.running,
            "limits": {"max_batch": serving.settings.max_batch, "max_explain": serving.settings.max_explain},
            "models": models,
            "versions": {**versions, "python": platform.python_version()},
        }
    )


def _status(serving: Serving, models: dict[str, dict[str, Any]]) -> str:
    if serving.draining:
        return "draining"
    if not models:
        return "loading"
    if not all(model["ready"] for model in models.values()):
        return "unhealthy"
    return "degraded" if any(model["degraded"] for model in models.values()) else "ready"


def _model(served: Served) -> dict[str, Any]:
    model, now = served.model, time.monotonic()
    scheduler, chain = model.scheduler.state(), model.status()
    since = scheduler.running_since
    return {
        "task": model.task,
        "labels": model.labels,
        "max_length": model.manifest.max_length,
        "ready": scheduler.ready,
        "degraded": chain.degraded,
        "engine": chain.engine,
        "precision": model.artifact.precision,
        "engines": [asdict(engine) for engine in chain.engines],
        "queue": {"texts": scheduler.requests, "tokens": scheduler.tokens},
        "running": {"texts": scheduler.running, "seconds": None if since is None else round(now - since, 3)},
        "worker_deaths": scheduler.restarts,
    }
