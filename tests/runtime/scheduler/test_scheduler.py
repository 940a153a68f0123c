"""Many callers at once, from threads and coroutines: each gets its own answer, once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from waiting import BUDGET, plan

from nopad.runtime.errors import DeadlineError, DrainingError, EngineError, NopadError, UsageError
from nopad.runtime.scheduler.events import BatchRun, Dropped, Event
from nopad.runtime.scheduler.queue import Limits
from nopad.runtime.scheduler.request import Done, Priority
from nopad.runtime.scheduler.scheduler import Scheduler

LONG = 60.0


@pytest.fixture
def scheduler() -> Iterator[Scheduler[int, int]]:
    def run(payloads: list[int]) -> list[int]:
        time.sleep(0.001)
        return [payload * 2 for payload in payloads]

    made: Scheduler[int, int] = Scheduler(run, plan)
    yield made
    made.close()


def values(outcomes: list[Done[int] | NopadError]) -> list[Any]:
    return [outcome.value if isinstance(outcome, Done) else outcome for outcome in outcomes]


def test_64_threads_and_64_coroutines_at_once(scheduler: Scheduler[int, int]) -> None:
    def ask(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(10):
            payloads = [draw.randrange(10**6) for _ in range(draw.randint(1, 5))]
            priority: Priority = draw.choice(["interactive", "batch"])
            call = scheduler.submit(payloads, [draw.randint(1, 120) for _ in payloads], priority=priority)
            assert values(scheduler.wait(call)) == [2 * payload for payload in payloads]

    async def ask_all() -> None:
        async def one(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(10):
                payload = draw.randrange(10**6)
                call = scheduler.submit([payload], [draw.randint(1, 120)], timeout=LONG)
                assert values(await scheduler.awaited(call)) == [2 * payload]

        await asyncio.gather(*map(one, range(64)))

    with ThreadPoolExecutor(65) as pool:
        answered = [pool.submit(asyncio.run, ask_all()), *(pool.submit(ask, seed) for seed in range(64))]
        for each in answered:
            each.result(LONG)
    assert scheduler.drain(LONG)
    state = scheduler.state()
    assert (state.requests, state.tokens, state.running, state.restarts) == (0, 0, 0, 0)


def test_under_chaos_every_request_ends_exactly_once() -> None:
    """Bad items, deaths, deadlines, callers who leave: each call ends, and all requests are accounted for."""
    runs: Counter[int] = Counter()
    events: list[Event] = []

    def run(payloads: list[int]) -> list[int]:
        if 13 in {payload % 100 for payload in payloads}:
            raise ValueError("bad")
        if 62 in {payload % 400 for payload in payloads}:
            raise SystemExit
        runs.update(payloads)
        time.sleep(0.0005)
        return payloads

    scheduler: Scheduler[int, int] = Scheduler(run, plan, Limits(requests=60, tokens=3000), observer=events.append)
    ends: Counter[str] = Counter()
    guard = threading.Lock()

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        for turn in range(20):
            payloads = [seed * 1000 + turn * 10 + i for i in range(draw.randint(1, 4))]
            timeout = draw.choice([None, None, 0.002, LONG])
            try:
                call = scheduler.submit(payloads, [draw.randint(1, BUDGET) for _ in payloads], timeout=timeout)
                if draw.random() < 0.1:
                    left = call.future.cancel()
                    end = "left" if left else "answered"
                else:
                    end = "answered"
                    for payload, value in zip(payloads, values(scheduler.wait(call)), strict=True):
                        assert value == payload or (payload % 100 == 13 and isinstance(value, EngineError))
            except NopadError as error:
                end = type(error).__name__
            with guard:
                ends[end] += 1

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(32)))
    assert scheduler.drain(LONG)
    scheduler.close()
    assert sum(ends.values()) == 32 * 20
    assert set(ends) == {"answered", "left", "DeadlineError", "EngineError", "OverloadedError"}
    assert set(runs.values()) == {1}  # a request that was answered was computed once
    # "deadline" only where the worker is the first to see it, which the clock decides (test_worker.py makes it so)
    reasons = {event.reason for event in events if isinstance(event, Dropped)}
    assert "gone" in reasons and reasons <= {"gone", "deadline"}
    assert any(isinstance(event, BatchRun) and event.requests > 1 for event in events)


def test_a_coroutine_gives_up_at_its_deadline_and_a_cancelled_task_has_gone() -> None:
    inside, release = threading.Event(), threading.Event()
    ran: list[int] = []

    def run(payloads: list[int]) -> list[int]:
        ran.extend(payloads)
        inside.set()
        assert release.wait(LONG)
        return payloads

    scheduler: Scheduler[int, int] = Scheduler(run, plan)

    async def main() -> None:
        first = asyncio.create_task(scheduler.awaited(scheduler.submit([1], [1])))
        await asyncio.to_thread(inside.wait, LONG)
        with pytest.raises(DeadlineError):
            await scheduler.awaited(scheduler.submit([2], [1], timeout=0.02))
        task = asyncio.create_task(scheduler.awaited(scheduler.submit([3], [1])))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        assert values(await first) == [1]
        assert values(await scheduler.awaited(scheduler.submit([4], [1]))) == [4]

    asyncio.run(main())
    assert ran == [1, 4]
    scheduler.close()


def test_drained_it_answers_what_waits_and_takes_nothing_new() -> None:
    release = threading.Event()

    def run(payloads: list[int]) -> list[int]:
        assert release.wait(LONG)
        return payloads

    scheduler: Scheduler[int, int] = Scheduler(run, plan)
    calls = [scheduler.submit([number], [BUDGET]) for number in range(4)]
    assert not scheduler.drain(0.01)
    assert scheduler.state().draining and not scheduler.state().ready
    with pytest.raises(DrainingError, match="nothing new is taken"):
        scheduler.submit([1], [1])
    release.set()
    assert scheduler.drain(LONG)
    assert [values(call.future.result(0)) for call in calls] == [[0], [1], [2], [3]]
    scheduler.close()


def test_arguments_that_make_no_sense(scheduler: Scheduler[int, int]) -> None:
    with pytest.raises(UsageError, match="'interactive' or 'batch', not 'urgent'"):
        scheduler.submit([1], [1], priority="urgent")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least one token"):
        scheduler.submit([1], [0])


def test_ctrl_c_in_a_waiting_thread_means_that_the_caller_has_gone(
    scheduler: Scheduler[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = scheduler.submit([1], [1])

    def interrupted(timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(call.future, "result", interrupted)
        scheduler.wait(call)
    assert call.over  # cancelled, or answered before
    assert values(scheduler.wait(scheduler.submit([2], [1]))) == [4]
