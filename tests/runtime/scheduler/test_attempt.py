"""A micro-batch that fails: only what is at fault has failed in the end, and soon."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import requests_of

from nopad.runtime.errors import EngineError, NopadError
from nopad.runtime.scheduler.attempt import SUSPECT, attempt


class Flaky:
    """Fails on every batch that holds a bad payload."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.runs: list[tuple[list[int], bool]] = []  # payloads, and whether they ran well

    def __call__(self, payloads: list[int]) -> list[int]:
        well = not self.bad & set(payloads)
        self.runs.append((payloads, well))
        if not well:
            raise RuntimeError(f"bad: {payloads}")
        return [payload * 10 for payload in payloads]


def outcomes(count: int, run: Any, *, sound: bool = True) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for part, values in attempt(requests_of([1] * count), run, lambda: sound):
        for number, request in enumerate(part):
            assert request.place not in found
            found[request.place] = values if isinstance(values, NopadError) else values[number]
    return found


@settings(max_examples=80, derandomize=True)
@given(count=st.integers(1, 80), data=st.data())
def test_only_the_bad_ones_fail(count: int, data: st.DataObject) -> None:
    run = Flaky(data.draw(st.sets(st.integers(0, count - 1), max_size=5)))
    found = outcomes(count, run)
    assert sorted(found) == list(range(count))
    for place, outcome in found.items():
        if place in run.bad:
            assert isinstance(outcome, EngineError) and f"RuntimeError: bad: [{place}]" in str(outcome)
        else:
            assert outcome == place * 10
    assert len(run.runs) <= 1 + 2 * len(run.bad) * math.ceil(math.log2(count) if count > 1 else 0)


@pytest.mark.parametrize("bad", range(64))
def test_one_bad_text_of_64_costs_12_more_runs_and_never_looks_like_a_broken_engine(bad: int) -> None:
    run = Flaky({bad})
    found = outcomes(64, run, sound=False)  # would be believed, if it were asked
    assert sum(isinstance(outcome, EngineError) for outcome in found.values()) == 1
    assert len(run.runs) == 13
    in_a_row = 0
    for _, well in run.runs:
        in_a_row = 0 if well else in_a_row + 1
        assert in_a_row < SUSPECT


def test_a_broken_engine_is_not_asked_again_and_again() -> None:
    run = Flaky(set(range(64)))
    found = outcomes(64, run, sound=False)
    assert len(found) == 64 and all(isinstance(outcome, EngineError) for outcome in found.values())
    assert len(run.runs) == SUSPECT


def test_an_engine_that_is_sound_is_asked_for_every_text() -> None:
    found = outcomes(8, Flaky(set(range(8))))
    assert [f"bad: [{place}]" in str(found[place]) for place in range(8)] == [True] * 8


def test_our_own_errors_stay_as_they_are_and_too_few_results_are_a_failure() -> None:
    error = EngineError("out of memory")

    def fail(payloads: list[int]) -> list[int]:
        raise error

    assert outcomes(1, fail) == {0: error}
    assert "0 results came back for 1 texts" in str(outcomes(1, lambda payloads: [])[0])


def test_whoever_has_gone_is_left_out_of_what_is_run_again() -> None:
    requests = [*requests_of([1], payloads=[0]), *requests_of([1] * 3, payloads=[1, 2, 3])]
    run = Flaky({3})

    def leave(payloads: list[int]) -> list[int]:
        requests[0].call.future.cancel()
        return run(payloads)

    done = [request for part, _ in attempt(requests, leave, lambda: True) for request in part]
    assert len(done) == 3 and requests[0] not in done
    assert [payloads for payloads, _ in run.runs] == [[0, 1, 2, 3], [1], [2, 3], [2], [3]]
