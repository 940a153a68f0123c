"""KServe's v2 protocol (Open Inference Protocol) with Triton's binary and classification extensions."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from nopad.model.packages import version_of
from nopad.runtime.answer_tensors import CONFIG_TYPES, Output, declared_inputs, declared_outputs, outputs_of
from nopad.runtime.scheduler.request import Priority
from nopad.runtime.server.calls import Call, Calling, Texts, headers_of, priority_of, reply
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Answered, Served
from nopad.runtime.server.tensors import HEADER_LENGTH, Infer, read_request, write_response
from nopad.runtime.server.vectors import token_vectors_of

router = APIRouter(prefix="/v2", tags=["KServe v2"])
LATEST = ""  # the version that answers
INFER_BODY = {"requestBody": {"content": {"application/json": {"schema": Infer.model_json_schema()}}}}


@router.get("")
async def server() -> Response:
    """What this server is."""
    extensions = ["binary_tensor_data", "classification", "model_configuration", "model_repository"]
    extensions += ["schedule_policy", "statistics"]
    return reply({"name": "nopad", "version": version_of("nopad"), "extensions": extensions})


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the process answers."""
    return reply({"live": True})


@router.get("/health/ready")
async def ready(call: Calling) -> Response:
    """200 if requests are answered now."""
    call.serving.require_healthy()
    await call.serving.forwards.require()
    return reply({"ready": True})


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
async def model_ready(name: str, call: Calling, version: str = LATEST) -> Response:
    """200 if this model answers now."""
    call.serving.require_ready()
    return reply({"name": _find(call, name, version).name, "ready": True})


@router.get("/models/stats")
async def all_statistics(call: Calling) -> Response:
    """What every model has answered so far."""
    call.serving.require_ready()
    return reply(
        {"model_stats": [served.statistics.row(served.name, str(served.version)) for served in call.serving.models]}
    )


@router.get("/models/{name}/stats")
@router.get("/models/{name}/versions/{version}/stats", include_in_schema=False)
async def statistics(name: str, call: Calling, version: str = LATEST) -> Response:
    """What the model has answered so far: requests, texts, micro-batches, and nanoseconds of each step."""
    served = _find(call, name, version)
    return reply({"model_stats": [_statistics(served)]})


@router.get("/models/{name}/config")
@router.get("/models/{name}/versions/{version}/config", include_in_schema=False)
async def config(name: str, call: Calling, version: str = LATEST) -> Response:
    """The model's configuration in Triton's form. Texts of a request are the first dimension of its tensors."""
    served = _find(call, name, version)
    engine = served.model.status().engine
    return reply(
        {
            "name": served.name,
            "platform": f"nopad_{engine}",
            "backend": "nopad",
            "max_batch_size": 0,  # no other dimension of a batch than that of the tensors
            "input": [{**_configured(tensor), "optional": tensor["name"] != "text"} for tensor in _inputs(served)],
            "output": [_configured(tensor) for tensor in _described(served)],
        }
    )


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}", include_in_schema=False)
async def metadata(name: str, call: Calling, version: str = LATEST) -> Response:
    """The model's inputs and outputs."""
    served = _find(call, name, version)
    return reply(
        {
            "name": served.name,
            "versions": [str(served.version)],
            "platform": f"nopad_{served.model.status().engine}",
            "inputs": _inputs(served),
            "outputs": _described(served),
        }
    )


@router.post("/models/{name}/infer", openapi_extra=INFER_BODY)
@router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
async def infer(name: str, call: Calling, request: Request, version: str = LATEST) -> Response:
    """Answer the texts of `text`, paired with those of `text_pair` if there are any."""
    served = _find(call, name, version)
    asked, strings = read_request(await request.body(), request.headers.get(HEADER_LENGTH))
    answered = await call.answer(
        served, _texts(strings, served), timeout=min(_microseconds(asked), 10**15) / 1e6, priority=_priority(asked)
    )
    head: dict[str, Any] = {"model_name": served.name, "model_version": str(served.version)}
    if asked.id is not None:
        head["id"] = asked.id
    head["parameters"] = {
        "tokens": answered.tokens,
        "truncated": answered.truncated,
        "engine": answered.answers[0].engine,
    }
    head["labels"] = served.model.labels
    body, length = write_response(head, _outputs(served, answered), asked)
    headers = headers_of(answered)
    if length is None:
        return Response(body, media_type="application/json", headers=headers)
    headers[HEADER_LENGTH] = str(length)
    return Response(body, media_type="application/octet-stream", headers=headers)


def _statistics(served: Served) -> dict[str, Any]:
    return served.statistics.row(served.name, str(served.version))


def _find(call: Call, name: str, version: str) -> Served:
    call.serving.require_ready()
    for served in call.serving.models:
        if served.name == name and version in (LATEST, str(served.version)):
            return served
    wanted = f"'{name}' version {version}" if version else f"'{name}'"
    raise Fault("model", f"Request for unknown model: {wanted} is not found")


def _texts(strings: dict[str, list[str]], served: Served) -> Texts:
    known = {tensor["name"] for tensor in _inputs(served)}
    for name in strings:
        if name not in known:
            raise Fault("validation", f"unexpected inference input '{name}' for model '{served.name}'")
    if "text" not in strings:
        raise Fault("validation", f"model '{served.name}' needs the input 'text'")
    first, second = strings["text"], strings.get("text_pair")
    if second is None:
        return Texts(first, True)
    if len(first) != len(second):
        raise Fault("validation", f"'text' has {len(first)} elements, 'text_pair' {len(second)}")
    return Texts(list(zip(first, second, strict=True)), True)


def _microseconds(asked: Infer) -> int:
    return _whole(asked, "timeout", "a whole number of microseconds")


def _priority(asked: Infer) -> Priority | None:
    """Triton's: 1 goes first, larger numbers later; 0 is the model's default."""
    return priority_of(_whole(asked, "priority", "a whole number, 1 for the first"), highest=1)


def _whole(asked: Infer, name: str, what: str) -> int:
    given = asked.parameters.get(name, 0)
    if type(given) is not int or given < 0:
        raise Fault("validation", f"the parameter {name} is {what}")
    return given


def _outputs(served: Served, answered: Answered) -> list[Output]:
    if served.model.task == "token-embeddings":
        token_vectors_of(answered, normalize=False)  # refuses too many
    outputs = outputs_of(served.model.manifest.task, served.model.labels, answered.answers)
    for output in outputs:
        if output.datatype == "FP32" and not np.isfinite(np.asarray(output.values)).all():
            raise Fault("engine", f"Backend error: {output.name} is NaN or infinite")
    return outputs


def _described(served: Served) -> list[dict[str, Any]]:
    size = next(iter(served.model.artifact.outputs.values()))[-1]
    return [tensor._asdict() for tensor in declared_outputs(served.model.manifest.task, served.model.labels, size)]


def _inputs(served: Served) -> list[dict[str, Any]]:
    return [tensor._asdict() for tensor in declared_inputs(served.model.manifest.task)]


def _configured(tensor: dict[str, Any]) -> dict[str, Any]:
    return {"name": tensor["name"], "data_type": CONFIG_TYPES[tensor["datatype"]], "dims": tensor["shape"]}
