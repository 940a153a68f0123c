"""What can go wrong with a request, and how each protocol says so: one table of faults, three shapes of bodies.

The shape follows the route, never the fault: `/v1/*` is OpenAI's, `/v2/*` KServe's, the rest TEI's. A fault has the
same status everywhere, except where a protocol's clients do not know it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nopad.runtime.errors import (
    ClosedError,
    DeadlineError,
    DrainingError,
    EngineError,
    EnvironmentProblem,
    NopadError,
    OverloadedError,
    TextError,
    UsageError,
)
from nopad.runtime.types import Failure

# fmt: off
Kind = Literal[
    "empty", "validation", "batch_size", "text", "syntax", "media", "body", "route", "method", "model", "task",
    "unauthorized", "deadline", "slow", "overloaded", "engine", "unavailable", "internal", "forbidden", "conflict",
    "memory",
]
# fmt: on
Shape = Literal["tei", "openai", "kserve"]


@dataclass(frozen=True)
class Row:
    """A line of the table: the status, and the fault's name in TEI's `error_type` and in OpenAI's `type`."""

    status: int
    tei: str
    metric: str | None = "validation"  # TEI's `err` of te_request_failure; None: not counted
    openai: str = "invalid_request_error"
    openai_status: int | None = None  # where it is another
    kserve_status: int | None = None


FAULTS: Mapping[Kind, Row] = {
    "empty": Row(400, "Empty"),
    "validation": Row(422, "Validation", kserve_status=400),
    "batch_size": Row(422, "Validation", "batch_size", kserve_status=400),
    "text": Row(422, "Tokenizer", "tokenization", kserve_status=400),
    "syntax": Row(400, "Validation"),
    "media": Row(415, "Validation"),
    "body": Row(413, "Validation"),
    "route": Row(404, "Validation", None),
    "method": Row(405, "Validation", None),
    "model": Row(404, "Validation", "model_type"),
    # Another kind of model is needed.
    "task": Row(424, "Backend", "model_type", openai_status=400, kserve_status=400),
    "unauthorized": Row(401, "Unauthorized", None, "authentication_error"),
    "deadline": Row(408, "Deadline", "dropped", "timeout"),
    "slow": Row(408, "Deadline", "dropped", "timeout"),  # a body that does not arrive
    "overloaded": Row(429, "Overloaded", "overloaded", "rate_limit_exceeded"),
    "engine": Row(424, "Backend", "inference", "server_error", openai_status=500, kserve_status=500),
    "unavailable": Row(503, "Unhealthy", "overloaded", "server_error"),
    "internal": Row(500, "Internal", "inference", "server_error"),
    # Of changing models.
    "forbidden": Row(403, "Forbidden", None, "permission_error"),
    "conflict": Row(409, "Conflict", None),
    "memory": Row(507, "Memory", None, "server_error"),
}
RETRY_SECONDS = 1.0  # where nothing says better when to come back


class Fault(Exception):
    """A request that is refused. `index` is the offending text of a batch, `field` the field of the request."""

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        index: int | None = None,
        field: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.index, self.field, self.code = kind, message, index, field, code
        waits = kind in ("overloaded", "unavailable")
        self.retry_after = RETRY_SECONDS if waits and retry_after is None else retry_after


def fault_of(error: Exception, index: int | None = None) -> Fault:
    """The fault that an error of the runtime is to a client; what nobody foresaw is `internal`, without its text."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, TextError):
        place = "" if index is None else f"text {index}: "
        return Fault("text", f"{place}{error}", index=index)
    if isinstance(error, ClosedError):  # replaced or unloaded, and its time to drain was over
        return Fault("unavailable", "the model was closed before it answered; ask again")
    if isinstance(error, UsageError):
        return Fault("validation", str(error))
    if isinstance(error, OverloadedError):
        return Fault("overloaded", f"Model is overloaded: {error}", retry_after=error.retry_after)
    if isinstance(error, DeadlineError):
        return Fault("deadline", str(error))
    if isinstance(error, DrainingError):
        return Fault("unavailable", str(error))
    if isinstance(error, EngineError):
        return Fault("engine", f"Backend error: {error}")
    if isinstance(error, EnvironmentProblem):
        return Fault("internal", "the server lacks a package, a device or memory; its log says which")
    if isinstance(error, NopadError):
        return Fault("internal", "the model cannot be used; the server's log says why")
    return Fault("internal", "internal error; the server's log has it under this request's x-request-id")


def first_failure(failures: list[Failure], batch: bool) -> Fault:
    """The fault of a call of which some texts failed: the call fails, and names the first of them."""
    first = failures[0]
    return fault_of(first.error, first.index if batch else None)


def shape_of(path: str) -> Shape:
    """Whose clients a route is for."""
    if path.startswith("/v1/"):
        return "openai"
    return "kserve" if path == "/v2" or (path.startswith("/v2/") and path != "/v2/rerank") else "tei"


def status_of(fault: Fault, shape: Shape) -> int:
    """The HTTP status of a fault on the routes of one shape."""
    row = FAULTS[fault.kind]
    return {"tei": None, "openai": row.openai_status, "kserve": row.kserve_status}[shape] or row.status


def body_of(fault: Fault, shape: Shape, path: str) -> dict[str, Any]:
    """The JSON body of a fault."""
    row = FAULTS[fault.kind]
    if shape == "kserve":
        return {"error": fault.message}
    if shape == "openai":
        where = fault.field if fault.index is None else f"{fault.field or 'input'}[{fault.index}]"
        error = {"message": fault.message, "type": row.openai, "param": where, "code": fault.code}
        # Cohere's client shows the outer message, OpenAI's reads what is under `error`.
        return {"error": error, "message": fault.message} if path == "/v1/rerank" else {"error": error}
    body: dict[str, Any] = {"error": fault.message, "error_type": row.tei}
    if fault.index is not None:
        body["index"] = fault.index
    return {**body, "message": fault.message} if path == "/v2/rerank" else body


def headers_of(fault: Fault) -> dict[str, str]:
    """The headers that tell a client what to do next."""
    if fault.kind == "unauthorized":
        return {"www-authenticate": "Bearer"}
    if fault.retry_after is None:
        return {}
    wait = max(fault.retry_after, 0.0)
    return {"retry-after": str(max(1, math.ceil(wait))), "retry-after-ms": str(math.ceil(wait * 1000))}
