"""The gRPC server: its methods, what their errors are called, and its beginning and end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
from starlette.types import ASGIApp

from nopad.runtime.errors import UsageError
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.file_changes import FileChanges
from nopad.runtime.server.grpc import transcode
from nopad.runtime.server.grpc.inside import Reply, ask
from nopad.runtime.server.grpc.messages import MESSAGES
from nopad.runtime.server.tensors import HEADER_LENGTH

Context = Any  # grpc.aio.ServicerContext: the library has no type hints
Method = Callable[[Any, Context], Awaitable[Any]]
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,  # as gRPC itself says of a message that is too long
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
PASSED_ON = ("authorization", "traceparent", "tracestate")  # metadata that become headers, beside those with x-
LONGEST_DEADLINE = 999_999_999  # milliseconds
NO_STREAMS = "this server has no streaming inference; call ModelInfer"
SERVING, NOT_SERVING = 1, 2  # grpc.health.v1


class Service:
    """The methods, each a request to `app`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def handlers(self) -> list[Any]:
        """The services `inference.GRPCInferenceService` and `grpc.health.v1.Health`."""
        unary = {
            "ServerLive": (self._live, "Empty"),
            "ServerReady": (self._ready, "Empty"),
            "ModelReady": (self._model_ready, "ModelRequest"),
            "ServerMetadata": (self._server, "Empty"),
            "ModelMetadata": (self._metadata, "ModelRequest"),
            "ModelInfer": (self._infer, "InferRequest"),
            "ModelConfig": (self._config, "ModelRequest"),
            "ModelStatistics": (self._statistics, "ModelRequest"),
            "RepositoryIndex": (self._index, "IndexRequest"),
            "RepositoryModelLoad": (self._load, "RepositoryModelRequest"),
            "RepositoryModelUnload": (self._unload, "RepositoryModelRequest"),
        }
        methods: dict[str, Any] = {name: _unary(method, request) for name, (method, request) in unary.items()}
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(_no_streams)
        health = {"Check": _unary(self._health, "HealthRequest")}
        return [
            grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
        ]

    async def _live(self, request: Any, context: Context) -> Any:
        return MESSAGES["Live"](live=(await self._ask(context, "GET", "/v2/health/live")).status == 200)

    async def _ready(self, request: Any, context: Context) -> Any:
        return MESSAGES["Ready"](ready=(await self._ask(context, "GET", "/v2/health/ready")).status == 200)

    async def _health(self, request: Any, context: Context) -> Any:
        ready = (await self._ask(context, "GET", "/v2/health/ready")).status == 200
        return MESSAGES["HealthResponse"](status=SERVING if ready else NOT_SERVING)

    async def _model_ready(self, request: Any, context: Context) -> Any:
        reply = await self._ask(context, "GET", f"{_model(request.name, request.version)}/ready")
        if reply.status not in (200, 404, 503):
            await _abort(reply, context)
        return MESSAGES["Ready"](ready=reply.status == 200)

    async def _server(self, request: Any, context: Context) -> Any:
        return transcode.message_of("ServerMetadata", await self._json(context, "GET", "/v2"))

    async def _metadata(self, request: Any, context: Context) -> Any:
        return transcode.message_of(
            "ModelMetadata", await self._json(context, "GET", _model(request.name, request.version))
        )

    async def _config(self, request: Any, context: Context) -> Any:
        return transcode.config_response(
            await self._json(context, "GET", f"{_model(request.name, request.version)}/config")
        )

    async def _statistics(self, request: Any, context: Context) -> Any:
        path = f"{_model(request.name, request.version)}/stats" if request.name else "/v2/models/stats"
        return transcode.message_of("StatisticsResponse", await self._json(context, "GET", path))

    async def _index(self, request: Any, context: Context) -> Any:
        body = json.dumps({"ready": request.ready}).encode()
        return MESSAGES["IndexResponse"](models=await self._json(context, "POST", "/v2/repository/index", body))

    async def _load(self, request: Any, context: Context) -> Any:
        return await self._repository(request, context, "load")

    async def _unload(self, request: Any, context: Context) -> Any:
        return await self._repository(request, context, "unload")

    async def _repository(self, request: Any, context: Context, verb: str) -> Any:
        path = f"/v2/repository/models/{quote(request.model_name, safe='')}/{verb}"
        await self._json(context, "POST", path, b"{}")
        return MESSAGES["Empty"]()

    async def _infer(self, request: Any, context: Context) -> Any:
        try:
            body, length = transcode.body_of(request)
        except Fault as fault:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, fault.message)
        path = f"{_model(request.model_name, request.model_version)}/infer"
        headers = {HEADER_LENGTH: str(length)}
        left = context.time_remaining()
        if left is not None and left * 1000 <= LONGEST_DEADLINE:
            headers["x-request-timeout-ms"] = str(max(1, round(left * 1000)))
        reply = await self._ask(context, "POST", path, body, headers)
        if reply.status != 200:
            await _abort(reply, context)
        return transcode.infer_response(reply.body, int(reply.headers[HEADER_LENGTH]))

    async def _json(self, context: Context, method: str, path: str, body: bytes = b"") -> Any:
        reply = await self._ask(context, method, path, body)
        if reply.status != 200:
            await _abort(reply, context)
        return json.loads(reply.body) if reply.body else {}

    async def _ask(
        self, context: Context, method: str, path: str, body: bytes = b"", own: dict[str, str] | None = None
    ) -> Reply:
        metadata = context.invocation_metadata() or ()
        headers = {
            key: value
            for key, value in metadata
            if isinstance(value, str) and (key in PASSED_ON or key.startswith("x-"))
        }
        return await ask(self._app, method, path, {**headers, **(own or {})}, body)


async def start(
    app: ASGIApp, address: str, *, most_bytes: int, tls: tuple[Path, Path | None] | None = None
) -> tuple[Any, int]:
    """A server that answers for `app` in this event loop, and its port; port 0 of the address takes a free one.

    Other processes of this user may listen on the same port, and the kernel spreads connections over them.
    `most_bytes`: of one message, also after decompression. `tls`: the files of the certificate and its key.
    Raises `UsageError`.
    """
    options = [
        ("grpc.max_receive_message_length", most_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 1),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers(Service(app).handlers())
    try:
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, _credentials(*tls))
    except RuntimeError:
        raise UsageError(f"cannot listen on {address} for gRPC; choose another --grpc-port") from None
    await server.start()
    return server, bound


def _credentials(cert: Path, key: Path | None) -> Any:
    """The certificate; read again for a new connection once its files have changed."""
    key = key or cert
    changes = FileChanges(cert, key)

    def read() -> Any:
        return grpc.ssl_server_certificate_configuration([(key.read_bytes(), cert.read_bytes())])

    def renewed() -> Any:
        try:
            return read() if changes.seen() else None
        except OSError:  # in this moment half written: the old one holds
            return None

    return grpc.dynamic_ssl_server_credentials(read(), renewed)


def _unary(method: Method, request: str) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        method,
        request_deserializer=MESSAGES[request].FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


async def _no_streams(requests: Any, context: Context) -> None:
    async for _ in requests:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, NO_STREAMS)


def _model(name: str, version: str) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


async def _abort(reply: Reply, context: Context) -> None:
    """End the call with the status and the text of an HTTP answer, and say when to come back."""
    try:
        said = str(json.loads(reply.body)["error"])
    except (ValueError, KeyError, TypeError):
        said = f"HTTP status {reply.status}"
    wait = reply.headers.get("retry-after-ms")
    trailing = (("retry-after-ms", wait), ("grpc-retry-pushback-ms", wait)) if wait else ()
    await context.abort(CODES.get(reply.status, grpc.StatusCode.INTERNAL), said, trailing)
