"""Requests for tests of the scheduler: made without a model, by length alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nopad.model.packing import plan_batches
from nopad.runtime.batching import WINDOW
from nopad.runtime.scheduler.request import Call, Priority, Request

BUDGET = 100


def plan(lengths: Sequence[int]) -> list[list[int]]:
    return plan_batches(lengths, token_budget=BUDGET, max_sequences=WINDOW)


def requests_of(
    lengths: Sequence[int],
    *,
    priority: Priority = "interactive",
    arrived: float = 0.0,
    deadline: float | None = None,
    payloads: Sequence[Any] | None = None,
) -> list[Request]:
    """The requests of one call."""
    call: Call[Any] = Call(len(lengths), deadline=deadline)
    return [
        Request(
            payload=place if payloads is None else payloads[place],
            length=length,
            priority=priority,
            arrived=arrived,
            call=call,
            place=place,
        )
        for place, length in enumerate(lengths)
    ]
