"""The thread: it overlaps with its callers, survives whatever a batch does to it, and ends when it should."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest
from waiting import BUDGET, plan

from nopad.runtime.errors import DeadlineError, EngineError, OverloadedError, UsageError
from nopad.runtime.scheduler import worker as worker_module
from nopad.runtime.scheduler.events import Admitted, BatchRun, Dropped, Event, Refused, WorkerDied
from nopad.runtime.scheduler.queue import Limits
from nopad.runtime.scheduler.request import Done
from nopad.runtime.scheduler.scheduler import Scheduler

LONG = 60.0  # seconds that a test may wait for what should come at once


class Engine:
    """Doubles payloads. `held` makes it wait inside; payloads that are exceptions are raised."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()

    def __call__(self, payloads: list[Any]) -> list[Any]:
        self.batches.append(payloads)
        self.entered.release()
        assert self.open.wait(LONG)
        for payload in payloads:
            if isinstance(payload, BaseException):
                raise payload
        return [payload * 2 for payload in payloads]

    def hold(self) -> None:
        self.open.clear()

    def wait_inside(self) -> None:
        assert self.entered.acquire(timeout=LONG)


def values(outcomes: list[Any]) -> list[Any]:
    return [outcome.value if isinstance(outcome, Done) else outcome for outcome in outcomes]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.open.set()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def scheduler(engine: Engine, events: list[Event]) -> Iterator[Scheduler[Any, Any]]:
    made: Scheduler[Any, Any] = Scheduler(engine, plan, Limits(requests=8, tokens=500), observer=events.append)
    yield made
    engine.open.set()
    made.close()


def test_answers_come_in_the_callers_order_with_their_times(scheduler: Scheduler[Any, Any], engine: Engine) -> None:
    outcomes = scheduler.wait(scheduler.submit([1, 2, 3], [10, BUDGET, 30]))
    assert values(outcomes) == [2, 4, 6]
    assert engine.batches == [[3, 1], [2]]
    first, second, third = outcomes
    assert isinstance(first, Done) and isinstance(second, Done) and isinstance(third, Done)
    assert 0 <= first.queued <= second.queued and first.queued == third.queued and first.ran >= 0
    assert scheduler.wait(scheduler.submit([], [])) == []


def test_callers_that_come_while_a_batch_runs_share_the_next(scheduler: Scheduler[Any, Any], engine: Engine) -> None:
    engine.hold()
    calls = [scheduler.submit([0], [10])]
    engine.wait_inside()
    calls += [scheduler.submit([number], [10]) for number in range(1, 6)]  # admitted while it runs
    assert scheduler.state().running == 1 and scheduler.state().requests == 5
    assert scheduler.state().running_since is not None
    engine.open.set()
    assert [values(scheduler.wait(call)) for call in calls] == [[2 * number] for number in range(6)]
    assert [len(batch) for batch in engine.batches] == [1, 5]


def test_one_bad_item_of_64_fails_alone(engine: Engine, events: list[Event]) -> None:
    scheduler: Scheduler[Any, Any] = Scheduler(engine, plan, observer=events.append)
    payloads: list[Any] = list(range(64))
    payloads[37] = ValueError("this one")
    outcomes = values(scheduler.wait(scheduler.submit(payloads, [1] * 64)))
    assert outcomes[:37] + outcomes[38:] == [2 * number for number in range(64) if number != 37]
    assert isinstance(outcomes[37], EngineError) and "ValueError: this one" in str(outcomes[37])
    assert scheduler.drain(LONG) and scheduler._worker.ready
    (run,) = [event for event in events if isinstance(event, BatchRun)]
    assert (run.requests, run.failed, run.tokens) == (64, 1, 64)
    scheduler.close()


@pytest.mark.parametrize("end", [SystemExit("gone"), KeyboardInterrupt(), GeneratorExit()])
def test_a_dead_worker_fails_its_waiters_at_once_and_is_restarted(
    end: BaseException, scheduler: Scheduler[Any, Any], engine: Engine, events: list[Event]
) -> None:
    engine.hold()
    dying = scheduler.submit([end, 1], [10, 10])
    engine.wait_inside()
    waiting = scheduler.submit([5], [10])
    first = scheduler._worker.thread
    engine.open.set()
    with pytest.raises(EngineError, match=f"the thread that ran this text died: {type(end).__name__}") as failed:
        scheduler.wait(dying)
    assert failed.value.__cause__ is end
    assert values(scheduler.wait(waiting)) == [10]  # by the next thread
    until(lambda: scheduler.state().ready)
    assert scheduler.state().restarts == 1 and scheduler._worker.thread is not first
    (death,) = [event for event in events if isinstance(event, WorkerDied)]
    assert death.cause is end and death.requests == 2


def test_after_a_death_it_is_ready_when_something_has_run_well(
    scheduler: Scheduler[Any, Any], events: list[Event]
) -> None:
    assert scheduler.state().ready
    with pytest.raises(EngineError):
        scheduler.wait(scheduler.submit([SystemExit()], [1]))
    assert not scheduler.state().ready
    assert values(scheduler.wait(scheduler.submit([1], [1]))) == [2]
    until(lambda: scheduler.state().ready)


def test_a_probe_makes_it_ready_again_without_any_caller(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PROBE_SECONDS", 0.01)
    broken = threading.Event()
    probes = 0

    def probe() -> None:
        nonlocal probes
        probes += 1
        if broken.is_set():
            raise SystemExit("still broken")  # not even this ends the thread

    scheduler: Scheduler[Any, Any] = Scheduler(engine, plan, probe=probe)
    broken.set()
    (failed,) = values(scheduler.wait(scheduler.submit([RuntimeError("CUDA")], [1])))
    assert isinstance(failed, EngineError)
    until(lambda: not scheduler.state().ready)
    until(lambda: probes > 3)
    assert not scheduler.state().ready and scheduler.state().restarts == 0
    broken.clear()
    until(lambda: scheduler.state().ready)
    (failed,) = values(scheduler.wait(scheduler.submit([RuntimeError("bad text")], [1])))
    assert isinstance(failed, EngineError) and scheduler.drain(LONG)
    assert scheduler._worker.ready  # the probe has said that the text is at fault
    scheduler.close()


def test_a_plan_that_fails_takes_everybody_down_and_nobody_waits_for_ever(engine: Engine) -> None:
    def fails(lengths: Any) -> list[list[int]]:
        raise ZeroDivisionError("a fault of ours")

    scheduler: Scheduler[Any, Any] = Scheduler(engine, fails)
    for _ in range(2):
        with pytest.raises(EngineError, match="a fault of ours"):
            scheduler.wait(scheduler.submit([1], [1]))
    scheduler.close()


def test_a_deadline_is_kept_though_the_engine_hangs(
    scheduler: Scheduler[Any, Any], engine: Engine, events: list[Event]
) -> None:
    engine.hold()
    started = time.monotonic()
    inside = scheduler.submit([1], [10], timeout=0.2)
    engine.wait_inside()
    behind = scheduler.submit([2], [10], timeout=0.1)
    for call in (behind, inside):
        with pytest.raises(DeadlineError):
            scheduler.wait(call)
    assert 0.2 <= time.monotonic() - started < LONG / 2
    unwatched = scheduler.submit([3], [10], timeout=0.01)  # nobody looks at the clock for it
    time.sleep(0.02)
    after = scheduler.submit([4], [10])
    engine.open.set()
    assert values(scheduler.wait(after)) == [8]
    with pytest.raises(DeadlineError, match=r"after 0\.\d+ s in the queue"):
        unwatched.future.result(LONG)
    assert engine.batches == [[1], [4]]  # neither was run
    drops = [(event.reason, event.requests) for event in events if isinstance(event, Dropped)]
    assert drops == [("gone", 1), ("deadline", 1)]
    with pytest.raises(DeadlineError, match="before the texts were queued"):
        scheduler.submit([1], [1], timeout=0.0)


def test_whoever_has_gone_is_not_computed(scheduler: Scheduler[Any, Any], engine: Engine) -> None:
    engine.hold()
    running = scheduler.submit([1], [10])
    engine.wait_inside()
    gone, stays = scheduler.submit([2, 3], [10, 10]), scheduler.submit([4], [10])
    assert gone.future.cancel() and running.future.cancel()  # one waits, one is being run
    engine.open.set()
    assert values(scheduler.wait(stays)) == [8]
    assert engine.batches == [[1], [4]]
    with pytest.raises(CancelledError):
        scheduler.wait(gone)


def test_a_full_queue_refuses_at_once_and_forgets_those_who_have_gone(
    scheduler: Scheduler[Any, Any], engine: Engine, events: list[Event]
) -> None:
    engine.hold()
    scheduler.submit([1], [10])
    engine.wait_inside()
    waiting = [scheduler.submit([number] * 4, [10] * 4) for number in range(2)]
    with pytest.raises(OverloadedError, match="8 texts with 80 tokens wait") as refused:
        scheduler.submit([1], [10])
    assert refused.value.retry_after > 0
    beyond = scheduler.submit([7], [10], bounded=False)
    waiting[0].future.cancel()
    beyond.future.cancel()
    time.sleep(worker_module.SWEEP_SECONDS)
    let_in = scheduler.submit([5] * 4, [10] * 4)
    engine.open.set()
    assert values(scheduler.wait(waiting[1])) == [2] * 4 and values(scheduler.wait(let_in)) == [10] * 4
    (refusal,) = [event for event in events if isinstance(event, Refused)]
    assert (refusal.requests, refusal.tokens, refusal.retry_after) == (1, 10, refused.value.retry_after)
    assert sum(isinstance(event, Admitted) for event in events) == 5
    assert sum(event.requests for event in events if isinstance(event, Dropped)) == 5


def test_an_observer_that_raises_harms_no_answer(engine: Engine) -> None:
    def observe(event: Event) -> None:
        raise SystemExit("metrics are broken")

    scheduler: Scheduler[Any, Any] = Scheduler(engine, plan, observer=observe)
    assert [values(scheduler.wait(scheduler.submit([n], [1]))) for n in range(3)] == [[0], [2], [4]]
    assert scheduler.state().restarts == 0
    scheduler.close()


def test_close_while_callers_wait(scheduler: Scheduler[Any, Any], engine: Engine) -> None:
    engine.hold()
    running = scheduler.submit([1], [10])
    engine.wait_inside()
    waiting = scheduler.submit([2], [10])
    with ThreadPoolExecutor(3) as pool:
        closing = pool.submit(scheduler.close)
        with pytest.raises(UsageError, match="closed while this text waited"):
            scheduler.wait(waiting)  # at once, though the engine is busy
        assert not closing.done()
        engine.open.set()
        closing.result(LONG)
    assert values(scheduler.wait(running)) == [2]
    assert scheduler.state().closed and not scheduler.state().ready
    with pytest.raises(UsageError, match="closed"):
        scheduler.submit([1], [1])
    scheduler.close()


def test_close_does_not_wait_for_ever_for_an_engine_that_hangs(engine: Engine) -> None:
    scheduler: Scheduler[Any, Any] = Scheduler(engine, plan)
    engine.hold()
    running = scheduler.submit([1], [10])
    engine.wait_inside()
    scheduler.close(timeout=0.05)
    with pytest.raises(UsageError, match="did not come back within 0.05 s"):
        scheduler.wait(running)
    thread = scheduler._worker.thread
    engine.open.set()
    assert thread is not None
    thread.join(LONG)
    assert not thread.is_alive()


def test_the_workers_thread_cannot_wait_for_itself(scheduler: Scheduler[Any, Any], engine: Engine) -> None:
    found: list[Any] = []

    def ask(_: object) -> None:  # in the worker's thread
        found.append(scheduler.in_worker())
        inner = scheduler.submit([5], [1])
        try:
            scheduler.wait(inner)
        except UsageError as error:
            found.append(error)
        found.append(inner)

    engine.hold()
    scheduler.submit([1], [1]).future.add_done_callback(ask)
    engine.open.set()
    until(lambda: len(found) == 3)
    assert found[0] and isinstance(found[1], UsageError)
    assert values(scheduler.wait(found[2])) == [10] and not scheduler.in_worker()


def test_the_thread_ends_with_the_last_reference(engine: Engine) -> None:
    scheduler: Scheduler[Any, Any] = Scheduler(engine, plan)
    assert scheduler._worker.thread is None  # nothing starts before the first request
    assert values(scheduler.wait(scheduler.submit([1], [1]))) == [2]
    thread, gone = scheduler._worker.thread, weakref.ref(scheduler._worker)
    assert thread is not None and thread.daemon
    del scheduler
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()
    del thread
    gc.collect()
    assert gone() is None


PROGRAM = """
import os, sys, threading, time
from nopad.runtime.scheduler.scheduler import Scheduler

def run(payloads):
    time.sleep(0.2)
    return payloads

scheduler = Scheduler(run, lambda lengths: [[i] for i in range(len(lengths))])
print(scheduler.wait(scheduler.submit([1], [1]))[0].value)
"""


def python(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", PROGRAM + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG)


def test_the_interpreter_ends_while_a_batch_runs_and_others_wait() -> None:
    done = python("calls = [scheduler.submit([1], [1]) for _ in range(100)]\nprint('end')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\nend\n", "")


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="warns of every fork of a process with threads")
def test_a_forked_child_has_a_thread_of_its_own() -> None:
    done = python(
        "scheduler.submit([7], [1])\n"
        "if not (child := os.fork()):\n"
        "    print(scheduler.state().requests, scheduler.wait(scheduler.submit([2], [1]))[0].value, flush=True)\n"
        "    os._exit(0)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n0 2\n0\n", "")
