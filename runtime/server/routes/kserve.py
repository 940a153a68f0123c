"""KServe's v2 protocol (Open Inference Protocol) with Triton's binary and classification extensions."""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from nopad.model.packages import version_of
from nopad.runtime.server.calls import Call, Texts, headers_of, reply
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Answered, Served
from nopad.runtime.server.tensors import Infer, Output, read_request, write_response
from nopad.runtime.server.vectors import vectors_of

router = APIRouter(prefix="/v2", tags=["KServe v2"])
Calling = Annotated[Call, Depends()]
LATEST = ""  # the version that answers
INPUTS = [
    {"name": "text", "datatype": "BYTES", "shape": [-1]},
    {"name": "text_pair", "datatype": "BYTES", "shape": [-1]},
]
HEADER_LENGTH = "inference-header-content-length"
INFER_BODY = {"requestBody": {"content": {"application/json": {"schema": Infer.model_json_schema()}}}}


@router.get("")
async def server() -> Response:
    """What this server is."""
    extensions = ["binary_tensor_data", "classification", "model_repository"]
    return reply({"name": "nopad", "version": version_of("nopad"), "extensions": extensions})


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the process answers."""
    return reply({"live": True})


@router.get("/health/ready")
async def ready(call: Calling) -> Response:
    """200 if requests are answered now."""
    call.serving.require_healthy()
    return reply({"ready": True})


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
async def model_ready(name: str, call: Calling, version: str = LATEST) -> Response:
    """200 if this model answers now."""
    call.serving.require_ready()
    return reply({"name": _find(call, name, version).name, "ready": True})


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
            "inputs": INPUTS if served.model.task in ("text-classification", "rerank") else INPUTS[:1],
            "outputs": _described(served),
        }
    )


@router.post("/models/{name}/infer", openapi_extra=INFER_BODY)
@router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
async def infer(name: str, call: Calling, request: Request, version: str = LATEST) -> Response:
    """Answer the texts of `text`, paired with those of `text_pair` if there are any."""
    served = _find(call, name, version)
    asked, strings = read_request(await request.body(), request.headers.get(HEADER_LENGTH))
    answered = await call.answer(served, _texts(strings, served), timeout=_timeout(asked))
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


def _find(call: Call, name: str, version: str) -> Served:
    call.serving.require_ready()
    for served in call.serving.models:
        if served.name == name and version in (LATEST, str(served.version)):
            return served
    wanted = f"'{name}' version {version}" if version else f"'{name}'"
    raise Fault("model", f"Request for unknown model: {wanted} is not found")


def _texts(strings: dict[str, list[str]], served: Served) -> Texts:
    known = {"text", "text_pair"} if served.model.task in ("text-classification", "rerank") else {"text"}
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


def _timeout(asked: Infer) -> float | None:
    given = asked.parameters.get("timeout")
    if given is None:
        return None
    if not isinstance(given, int) or given < 1:
        raise Fault("validation", "the parameter timeout is a positive whole number of microseconds")
    return given / 1e6


def _outputs(served: Served, answered: Answered) -> list[Output]:
    count, task = len(answered.answers), served.model.task
    if task == "embeddings":
        vectors = vectors_of(answered, normalize=False)
        return [Output("embedding", vectors.shape, vectors)]
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
    outputs: dict[str, list[dict[str, Any]]] = {
        "embeddings": [{"name": "embedding", "datatype": "FP32", "shape": [-1, int(size) if size.isdigit() else -1]}],
        "token-classification": [{"name": "entities", "datatype": "BYTES", "shape": [-1]}],
        "fill-mask": [{"name": "masks", "datatype": "BYTES", "shape": [-1]}],
    }
    scores = [
        {"name": "scores", "datatype": "FP32", "shape": [-1, len(served.model.labels)]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
    ]
    return outputs.get(served.model.task, scores)
