"""KServe's v2 protocol (Open Inference Protocol) with Triton's binary and classification extensions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from nopad.model.packages import version_of
from nopad.runtime.scheduler.request import Priority
from nopad.runtime.server.calls import Call, Calling, Texts, headers_of, priority_of, reply
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Answered, Served
from nopad.runtime.server.tensors import HEADER_LENGTH, Infer, Output, read_request, write_response
from nopad.runtime.server.vectors import token_vectors_of, vectors_of

router = APIRouter(prefix="/v2", tags=["KServe v2"])
LATEST = ""  # the version that answers
DATA_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}  # Triton's names in a configuration
INPUTS: list[dict[str, Any]] = [
    {"name": "text", "datatype": "BYTES", "shape": [-1]},
    {"name": "text_pair", "datatype": "BYTES", "shape": [-1]},
]
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
    count, task = len(answered.answers), served.model.task
    if task == "embeddings":
        vectors = vectors_of(answered, normalize=False)
        return [Output("embedding", vectors.shape, vectors)]
    if task == "token-embeddings":  # text after text, without padding
        rows = token_vectors_of(answered, normalize=False)
        stream = np.concatenate(rows)
        return [
            Output("token_embedding", stream.shape, stream),
            Output("tokens", [count], np.array([len(vectors) for vectors in rows], dtype=np.int64)),
        ]
    if task == "token-classification":
        lists = [
            [
                {"label": each.label, "score": each.score, "start": each.start, "end": each.end, "text": each.text}
                for each in tagging.entities
            ]
            for tagging in answered.answers
        ]
        return [Output("entities", [count], [json.dumps(found, ensure_ascii=False) for found in lists])]
    if task == "fill-mask":
        return [Output("masks", [count], [json.dumps(fill.masks, ensure_ascii=False) for fill in answered.answers])]
    labels = served.model.labels
    scores = np.array([[answer.scores[label] for label in labels] for answer in answered.answers], dtype=np.float32)
    if not np.isfinite(scores).all():
        raise Fault("engine", "Backend error: score is NaN or infinite")
    return [
        Output("scores", [count, len(labels)], scores),
        Output("label", [count], [answer.label for answer in answered.answers]),
    ]


def _described(served: Served) -> list[dict[str, Any]]:
    size = next(iter(served.model.artifact.outputs.values()))[-1]
    shape = [-1, int(size) if size.isdigit() else -1]
    outputs: dict[str, list[dict[str, Any]]] = {
        "embeddings": [{"name": "embedding", "datatype": "FP32", "shape": shape}],
        "token-embeddings": [
            {"name": "token_embedding", "datatype": "FP32", "shape": shape},
            {"name": "tokens", "datatype": "INT64", "shape": [-1]},
        ],
        "token-classification": [{"name": "entities", "datatype": "BYTES", "shape": [-1]}],
        "fill-mask": [{"name": "masks", "datatype": "BYTES", "shape": [-1]}],
    }
    scores = [
        {"name": "scores", "datatype": "FP32", "shape": [-1, len(served.model.labels)]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
    ]
    return outputs.get(served.model.task, scores)


def _inputs(served: Served) -> list[dict[str, Any]]:
    return INPUTS if served.model.task in ("text-classification", "rerank") else INPUTS[:1]


def _configured(tensor: dict[str, Any]) -> dict[str, Any]:
    return {"name": tensor["name"], "data_type": DATA_TYPES[tensor["datatype"]], "dims": tensor["shape"]}
