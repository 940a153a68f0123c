"""`Model` and many callers at once: answers as offline, refusals, deadlines, failures, and its end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nopad.export.parity.samples import SAMPLES
from nopad.model.packing import PackedBatch
from nopad.runtime import Failure, Model, Prediction, load
from nopad.runtime.batching import WINDOW
from nopad.runtime.engines.fake import FakeEngine
from nopad.runtime.errors import DeadlineError, EngineError, OverloadedError, UsageError
from nopad.runtime.scheduler.events import BatchRun, Event
from nopad.runtime.scheduler.queue import Limits
from nopad.runtime.types import FloatArray

NAME = "modernbert-single-mean"
LONG = 60.0
Bundles = Callable[[str], Path]


class Held:
    """Answers ones; waits inside while it is held."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self.bad_length = -1  # of a text that no batch survives

    def __call__(self, batch: PackedBatch) -> FloatArray:
        self.entered.release()
        assert self.open.wait(LONG)
        if self.bad_length in batch.lengths:
            raise EngineError("out of memory")
        return np.ones((len(batch.lengths), 3), dtype=np.float32)

    def hold(self) -> None:
        while self.entered.acquire(blocking=False):  # of the self-check
            pass
        self.open.clear()

    def wait_inside(self) -> None:
        assert self.entered.acquire(timeout=LONG)


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.open.set()


@pytest.fixture(scope="module")
def embedded() -> Iterator[Model]:
    with load(threads=1) as model:
        yield model


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def same(got: Prediction, wanted: Prediction) -> None:
    assert got.logits == pytest.approx(wanted.logits, abs=1e-5)
    assert (got.label, got.tokens, got.tokens_used) == (wanted.label, wanted.tokens, wanted.tokens_used)


def test_64_threads_and_64_coroutines_get_what_is_answered_offline(embedded: Model) -> None:
    texts = [f"{SAMPLES[number % len(SAMPLES)]} {'and ' * (number % 7)}" for number in range(128)]
    offline = embedded.predict(texts, return_logits=True)

    async def ask_all() -> list[Prediction]:
        return await asyncio.gather(*(embedded.apredict(text, return_logits=True) for text in texts[64:]))

    with ThreadPoolExecutor(65) as pool:
        awaited = pool.submit(asyncio.run, ask_all())
        asked = [pool.submit(embedded.predict, [text], return_logits=True) for text in texts[:64]]
        answers = [future.result(LONG)[0] for future in asked] + awaited.result(LONG)
    for got, wanted in zip(answers, offline, strict=True):
        same(got, wanted)


def test_a_lone_caller_gets_the_same_bits_as_without_a_scheduler(embedded: Model) -> None:
    texts = [" ".join(SAMPLES[number % len(SAMPLES)].split()[: 1 + number % 11]) for number in range(WINDOW + 90)]
    answers = embedded.predict(texts, return_logits=True)
    for answer, logits in zip(answers, embedded.logits(texts), strict=True):  # in the caller's thread
        assert answer.logits is not None and np.array_equal(answer.logits, logits)


def test_every_method_has_a_twin_for_coroutines(bundle: Bundles) -> None:
    texts = ["a [MASK] film", "one more [MASK] film of many words"]
    pairs = [("a film", "a plot"), ("a film", "splendid")]
    cases: list[tuple[str, str, tuple[Any, ...]]] = [
        (NAME, "predict", (texts,)),
        (NAME, "predict", (pairs,)),
        ("modernbert-token", "tag", (texts,)),
        ("modernbert-mlm", "fill", (texts,)),
        ("modernbert-embed-mean-unit", "embed", (texts,)),
        ("modernbert-embed-mean-unit", "embed", ([],)),
    ]
    for name, method, arguments in cases:
        with load(bundle(name), threads=1) as model:
            sync, twin = getattr(model, method), getattr(model, f"a{method}")
            want, got = sync(*arguments), asyncio.run(twin(*arguments, timeout=LONG, priority="batch"))
            if method == "embed":
                assert np.array_equal(got, want) and got.shape[1] == 64
            else:
                assert got == want
            if method != "predict":
                with pytest.raises(UsageError, match="brackets"):
                    asyncio.run(twin("a film"))
            other = model.apredict if method != "predict" else model.atag
            with pytest.raises(UsageError, match=rf"use {method}\(\)"):
                asyncio.run(other(["a film"]))


def test_passages_are_ranked_for_coroutines_too(bundle: Bundles) -> None:
    with load(bundle("bert-rerank"), threads=1) as model:
        want = model.rerank("a film", SAMPLES[:5])
        assert asyncio.run(model.arerank("a film", SAMPLES[:5])) == want
        assert len(want) == 5 and asyncio.run(model.arerank("a film", [])) == []


def test_apredict_answers_one_text_a_pair_or_a_list(embedded: Model) -> None:
    async def ask() -> None:
        one, pair = await embedded.apredict("a film"), await embedded.apredict(("a film", "a plot"))
        assert isinstance(one, Prediction) and isinstance(pair, Prediction)
        first, bad, last = await embedded.apredict(["a film", "", "a plot"], on_error="return")
        assert isinstance(first, Prediction) and isinstance(last, Prediction)
        assert isinstance(bad, Failure) and bad.index == 1 and "empty" in str(bad.error)
        with pytest.raises(Exception, match="text 1: the text is empty"):
            await embedded.apredict(["a film", ""])
        long = ["a long text " * 200] * 3  # tokenized in another thread
        assert [answer.label for answer in await embedded.apredict(long)] == [
            answer.label for answer in embedded.predict(long)
        ]
        assert await embedded.apredict([]) == []

    asyncio.run(ask())


def test_a_server_learns_where_the_time_went(embedded: Model) -> None:
    answered = asyncio.run(embedded.aresults(["a film", "", "a plot"]))
    assert [isinstance(answer, Failure) for answer in answered.answers] == [False, True, False]
    assert answered.tokenizing > 0 and answered.queued > 0 and answered.running > 0


def test_a_text_is_tokenized_while_another_runs(held: Held, bundle: Bundles) -> None:
    with load(bundle(NAME), engine=FakeEngine(held)) as model, ThreadPoolExecutor(2) as pool:
        held.hold()
        first = pool.submit(model.predict, ["a film"])
        held.wait_inside()
        second = pool.submit(model.predict, ["a plot", "a dull film"])
        until(lambda: model.scheduler.state().requests == 2)  # tokenized and queued
        assert not first.done()
        held.open.set()
        assert len(first.result(LONG)) == 1 and len(second.result(LONG)) == 2


def test_one_bad_text_in_64_fails_alone(held: Held, bundle: Bundles) -> None:
    texts = ["a film"] * 64
    texts[20] = "a much longer film " * 5
    events: list[Event] = []
    with load(bundle(NAME), engine=FakeEngine(held), observer=events.append) as model:
        (bad,) = model.encode([texts[20]])
        assert not isinstance(bad, Exception)
        held.bad_length = bad.used
        answers = model.predict(texts, on_error="return")
        failed = [answer for answer in answers if isinstance(answer, Failure)]
        assert [(failure.index, str(failure.error)) for failure in failed] == [(20, "out of memory")]
        with pytest.raises(EngineError, match="out of memory"):
            model.predict(texts)
        assert model.predict(["a film"])[0].engine == "fake" and model.scheduler.state().ready
    assert [event.failed for event in events if isinstance(event, BatchRun)] == [1, 1, 0]


def test_a_deadline_is_kept_though_the_engine_hangs(held: Held, bundle: Bundles) -> None:
    with load(bundle(NAME), engine=FakeEngine(held)) as model:
        held.hold()
        started = time.monotonic()
        for ask in (
            lambda: model.predict(["a film"], timeout=0.1),
            lambda: list(model.predict(iter(["a film"]), timeout=0.1)),
            lambda: asyncio.run(model.apredict("a film", timeout=0.1)),
            lambda: model.predict(["a film"], timeout=0),
        ):
            with pytest.raises(DeadlineError):
                ask()
        assert 0.3 <= time.monotonic() - started < LONG / 2
        held.open.set()
        assert model.predict(["a film"], timeout=LONG)[0].engine == "fake"


def test_a_deadline_is_of_the_whole_list_and_of_each_window_of_an_iterator(bundle: Bundles) -> None:
    def slow(batch: PackedBatch) -> FloatArray:
        time.sleep(0.05)
        return np.ones((len(batch.lengths), 3), dtype=np.float32)

    texts = ["a film"] * WINDOW * 3
    with load(bundle(NAME), engine=FakeEngine(slow)) as model:
        model.predict(texts[:1])
        seconds = time.monotonic()
        assert len(list(model.predict(iter(texts), timeout=LONG))) == len(texts)
        seconds = time.monotonic() - seconds
        with pytest.raises(DeadlineError):
            model.predict(texts, timeout=seconds / 10)


def test_coroutines_are_refused_where_threads_wait(held: Held, bundle: Bundles) -> None:
    limits = Limits(requests=2, tokens=100)
    with (
        load(bundle(NAME), engine=FakeEngine(held), limits=limits) as model,
        ThreadPoolExecutor(1) as pool,
    ):
        held.hold()
        waiting = pool.submit(model.predict, ["a film"] * 3000)  # a window at a time, whatever the limits
        until(lambda: model.scheduler.state().requests > 0)
        with pytest.raises(OverloadedError) as refused:
            asyncio.run(model.apredict("a film"))
        assert refused.value.retry_after > 0
        assert model.scheduler.state().requests <= WINDOW
        held.open.set()
        assert len(waiting.result(LONG)) == 3000
        with pytest.raises(UsageError, match="send fewer at once"):
            asyncio.run(model.apredict(["a film"] * 3))


def test_a_model_closed_while_callers_wait_tells_them(held: Held, bundle: Bundles) -> None:
    model = load(bundle(NAME), engine=FakeEngine(held))
    held.hold()
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(model.predict, ["a film"])
        held.wait_inside()
        waiting = pool.submit(model.predict, ["a plot"])
        until(lambda: model.scheduler.state().requests == 1)
        closing = pool.submit(model.close)
        with pytest.raises(UsageError, match="closed while this text waited"):
            waiting.result(LONG)
        held.open.set()
        closing.result(LONG)
        assert len(running.result(LONG)) == 1
    with pytest.raises(UsageError, match="closed: load it again"):
        asyncio.run(model.apredict("a film"))


def test_the_schedulers_own_thread_is_answered_at_once(bundle: Bundles) -> None:
    found: list[Any] = []

    def observe(event: Event) -> None:  # in the scheduler's thread
        if isinstance(event, BatchRun) and not found:
            found.append(None)
            found[0] = model.predict(["a film", "", "a plot"], on_error="return")

    def ones(batch: PackedBatch) -> FloatArray:
        return np.ones((len(batch.lengths), 3), dtype=np.float32)

    with load(bundle(NAME), engine=FakeEngine(ones), observer=observe) as model:
        model.predict(["a film"])
        until(lambda: bool(found) and found[0] is not None)
    assert [isinstance(answer, Failure) for answer in found[0]] == [False, True, False]


def test_a_forgotten_model_leaves_no_thread(bundle: Bundles) -> None:
    before = threading.active_count()
    model = load(bundle(NAME), threads=1)
    assert threading.active_count() == before  # it starts with the first text
    late = model.predict(iter(["a film", "a plot"]))
    del model
    gc.collect()
    assert isinstance(next(late), Prediction)  # an iterator keeps what it needs
    assert threading.active_count() == before + 1
    del late
    gc.collect()
    until(lambda: threading.active_count() == before)


def test_a_model_that_nobody_closed_does_not_disturb_the_end() -> None:
    program = (
        "import threading; from nopad.runtime import load; model = load(threads=2)\n"
        "print(model.predict(['splendid'])[0].label)\n"
        "texts = ['a long dull film ' * 300] * 400\n"
        "threading.Thread(target=lambda: model.predict(texts), daemon=True).start()\n"
        "while not model.scheduler.state().running: pass"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stdout) == (0, "positive\n"), done.stderr


def test_options_that_make_no_sense(embedded: Model) -> None:
    with pytest.raises(UsageError, match="'interactive' or 'batch'"):
        embedded.predict(["a film"], priority="urgent")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="patience"):
        embedded.predict(["a film"], patience=3)  # type: ignore[call-overload]
