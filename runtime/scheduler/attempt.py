"""Running one micro-batch: where it fails it is halved until only the requests at fault have failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nopad.runtime.errors import EngineError, NopadError
from nopad.runtime.scheduler.request import Request

# Runs payloads as one micro-batch: a result for each, in order. Any `Exception` is a failure of the whole.
Run = Callable[[list[Any]], Sequence[Any]]
SUSPECT = 3  # failures without a success that are more probably the engine's fault than a request's


def attempt(
    batch: Sequence[Request], run: Run, sound: Callable[[], bool]
) -> Iterator[tuple[list[Request], Sequence[Any] | NopadError]]:
    """Each part of the batch as it is done: its results, or the error of all its requests.

    `sound` tells whether the engine works at all; where it does not, the rest fails without being run. Requests whose
    callers have gone meanwhile are left out.
    """
    # Breadth first: next to the half that fails, the other succeeds, so that one bad request never looks like an engine
    # that fails again and again (`nopad.runtime.engines.chain.FAILURES`).
    parts = deque([list(batch)])
    failures, worked = 0, False
    while parts:
        part = [request for request in parts.popleft() if not request.call.over]
        if not part:
            continue
        try:
            values = run([request.payload for request in part])
            if len(values) != len(part):
                raise EngineError(f"{len(values)} results came back for {len(part)} texts: a fault of the engine")
        except Exception as error:
            cause = _ours(error)
            failures += 1
            if failures == SUSPECT and not worked and not sound():
                yield part, cause
                yield [request for rest in parts for request in rest], cause
                return
            if len(part) == 1:
                yield part, cause
            else:
                half = len(part) // 2
                parts += [part[:half], part[half:]]
        else:
            worked = True
            yield part, values


def _ours(error: Exception) -> NopadError:
    if isinstance(error, NopadError):
        return error
    wrapped = EngineError(f"the engine failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
