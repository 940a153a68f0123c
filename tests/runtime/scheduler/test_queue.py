"""The queue: everything comes out once, in micro-batches within the budget, and nobody waits for ever."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from shape_profiles import profiles
from waiting import BUDGET, plan, requests_of

from nopad.runtime.batching import WINDOW, BatchPlanner
from nopad.runtime.errors import OverloadedError, UsageError
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.scheduler.queue import PASSED_OVER, PROMISED, UNMEASURED_RETRY_SECONDS, Limits, Queue
from nopad.runtime.scheduler.request import Done, Priority, Request

FAST = settings(max_examples=60, derandomize=True)
LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=12)
PRIORITY: st.SearchStrategy[Priority] = st.sampled_from(["interactive", "batch"])
WIDE = Limits(requests=10**9, tokens=10**9)


class Waiting(RuleBasedStateMachine):
    """Callers come and go, time passes, micro-batches are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(requests=40, tokens=1500)
        self.queue = Queue(plan, self.limits)
        self.now = 0.0
        self.waiting: list[Request] = []
        self.came_out: Counter[Request] = Counter()
        self.taken_since: dict[Request, int] = {}  # micro-batches while it waited
        self.bound: dict[Request, int] = {}

    @rule(lengths=LENGTHS, priority=PRIORITY, patience=st.none() | st.integers(1, 9), bounded=st.booleans())
    def arrive(self, lengths: list[int], priority: Priority, patience: int | None, bounded: bool) -> None:
        deadline = None if patience is None else self.now + patience
        new = requests_of(lengths, priority=priority, arrived=self.now, deadline=deadline)
        requests, tokens = self.queue.requests + len(new), self.queue.tokens + sum(lengths)
        fits = requests <= self.limits.requests and tokens <= self.limits.tokens
        if bounded and not fits:
            with pytest.raises((OverloadedError, UsageError)):
                self.queue.admit(new)
            return
        self.queue.admit(new, bounded=bounded)
        for request in new:
            older = sum(other.priority == priority for other in self.waiting)
            self.bound[request] = (PASSED_OVER + 1) ** 2 * (older + 1)
            self.taken_since[request] = 0
            self.waiting.append(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).call.future.cancel()

    @rule(seconds=st.floats(0.1, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        taken = self.queue.take(self.now)
        batch = taken.batch
        for request in taken.dropped:
            assert request.call.over or request.expired(self.now)
        for request in batch:
            assert not request.call.over and not request.expired(self.now)
        assert len({request.priority for request in batch}) <= 1
        assert len(batch) == 1 or sum(request.length for request in batch) <= BUDGET
        assert [request.length for request in batch] == sorted((r.length for r in batch), reverse=True)
        self.out([*batch, *taken.dropped])
        if batch:
            for request in self.waiting:
                self.taken_since[request] += 1
                assert self.taken_since[request] < self.bound[request]
        else:
            assert not self.waiting

    @rule()
    def sweep(self) -> None:
        stale = {request for request in self.waiting if request.call.over or request.expired(self.now)}
        swept = self.queue.sweep(self.now)
        assert set(swept) == stale
        self.out(swept)

    def out(self, gone: list[Request]) -> None:
        self.came_out.update(gone)
        assert set(self.came_out.values()) <= {1}
        self.waiting = [request for request in self.waiting if request not in set(gone)]

    @invariant()
    def counts_are_of_what_waits(self) -> None:
        assert self.queue.requests == len(self.waiting)
        assert self.queue.tokens == sum(request.length for request in self.waiting)

    def teardown(self) -> None:
        assert sorted(map(id, self.queue.clear())) == sorted(map(id, self.waiting))
        assert (self.queue.requests, self.queue.tokens, self.queue.take(self.now).batch) == (0, 0, [])


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=60, stateful_step_count=40, derandomize=True)


@FAST
@given(
    victim=st.tuples(st.integers(1, 150), PRIORITY),
    older=LENGTHS,
    flood=st.lists(st.tuples(LENGTHS, PRIORITY, st.integers(1, 99)), min_size=1, max_size=6),
)
def test_a_flood_of_more_urgent_requests_starves_nobody(
    victim: tuple[int, Priority], older: list[int], flood: list[tuple[list[int], Priority, int]]
) -> None:
    queue = Queue(plan, WIDE)
    queue.admit(requests_of(older, priority=victim[1]))
    (waits,) = requests_of([victim[0]], priority=victim[1])
    queue.admit([waits])
    turns = (PASSED_OVER + 1) ** 2 * (len(older) + 1)
    for _ in range(turns):
        for lengths, priority, deadline in flood:  # all with deadlines, which the one that waits has not
            queue.admit(requests_of(lengths, priority=priority, deadline=float(deadline)))
        if waits in queue.take(0.0).batch:
            return
    pytest.fail(f"passed over {turns} times")


def test_the_oldest_and_the_batch_lane_are_passed_over_no_more_often_than_stated() -> None:
    queue = Queue(plan, WIDE)
    (oldest,) = requests_of([BUDGET])
    queue.admit([oldest])
    queue.admit(requests_of([BUDGET] * 40, deadline=9.0))
    taken = [queue.take(0.0).batch for _ in range(PASSED_OVER + 1)]
    assert [oldest in batch for batch in taken] == [False] * PASSED_OVER + [True]

    queue = Queue(plan, WIDE)
    queue.admit(requests_of([BUDGET] * 40, priority="batch"))
    queue.admit(requests_of([BUDGET] * 40))
    taken = [queue.take(0.0).batch for _ in range(2 * (PASSED_OVER + 1))]
    turn = ["interactive"] * PASSED_OVER + ["batch"]
    assert [batch[0].priority for batch in taken] == turn * 2


def test_interactive_goes_first_and_the_earliest_deadline_before_that_which_came_first() -> None:
    queue = Queue(plan, WIDE)
    arrivals: list[tuple[Priority, float | None]] = [
        ("batch", None),
        ("interactive", None),
        ("interactive", 5.0),
        ("interactive", 3.0),
    ]
    for priority, deadline in arrivals:
        queue.admit(requests_of([BUDGET], priority=priority, deadline=deadline))
    taken = [queue.take(0.0).batch[0] for _ in range(4)]
    assert [(r.priority, r.call.deadline) for r in taken] == arrivals[::-1]


@FAST
@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=WINDOW))
def test_a_window_alone_is_run_as_it_is_planned(lengths: list[int]) -> None:
    queue = Queue(plan, WIDE)
    queue.admit(requests_of(lengths))
    taken: list[list[int]] = []
    while batch := queue.take(0.0).batch:
        taken.append([request.place for request in batch])
    assert sorted(taken) == sorted(plan(lengths))
    assert 0 in taken[0]


@FAST
@given(lengths=LENGTHS, chosen=st.lists(profiles(), min_size=1, max_size=3))
def test_an_engine_with_profiles_gets_what_it_takes(lengths: list[int], chosen: list[ShapeProfile]) -> None:
    planner = BatchPlanner(engine_tokens=512, profiles=tuple(chosen))
    queue = Queue(planner.plan, WIDE)
    queue.admit(requests_of(lengths))
    while batch := queue.take(0.0).batch:
        assert planner.takes([request.length for request in batch]) or len(batch) == 1


@FAST
@given(sizes=st.lists(LENGTHS, min_size=1, max_size=8), most=st.integers(1, 30), tokens=st.integers(1, 2000))
def test_admission_is_all_or_nothing(sizes: list[list[int]], most: int, tokens: int) -> None:
    queue = Queue(plan, Limits(requests=most, tokens=tokens))
    for lengths in sizes:
        before = queue.requests, queue.tokens
        new = requests_of(lengths)
        room = queue.has_room(new)
        try:
            queue.admit(new)
        except (OverloadedError, UsageError) as error:
            assert not room and (queue.requests, queue.tokens) == before
            never = len(lengths) > most or sum(lengths) > tokens
            assert isinstance(error, UsageError) == never
        else:
            assert room and (queue.requests, queue.tokens) == (before[0] + len(lengths), before[1] + sum(lengths))
        assert queue.requests <= most and queue.tokens <= tokens


def test_whoever_is_refused_is_told_when_to_come_again() -> None:
    queue = Queue(plan, Limits(requests=4, tokens=300))
    queue.admit(requests_of([100, 100]))
    with pytest.raises(OverloadedError, match=r"2 texts with 200 tokens wait.*3 more") as refused:
        queue.admit(requests_of([50] * 3))
    assert refused.value.retry_after == UNMEASURED_RETRY_SECONDS
    queue.note_run(1000, 2.0)  # 500 tokens/s
    queue.note_run(1000, 2.0)
    with pytest.raises(OverloadedError) as refused:
        queue.admit(requests_of([50] * 3))
    assert refused.value.retry_after == pytest.approx(200 / 500)
    for _ in range(60):
        queue.note_run(1000, 1.0)  # it has become faster
    assert queue.retry_after() == pytest.approx(200 / 1000, rel=0.01)
    with pytest.raises(UsageError, match="send fewer at once"):
        queue.admit(requests_of([1] * 5))


def test_who_would_be_late_is_refused_at_once() -> None:
    queue = Queue(plan, WIDE)
    queue.admit(requests_of([100] * 50, deadline=1.0))  # nothing is measured yet
    queue.clear()
    queue.note_run(1000, 2.0)  # 500 tokens/s
    queue.admit(requests_of([100] * 40, deadline=60.0))  # 8 s of work, due later than all that follows
    queue.admit(requests_of([100] * 40))
    queue.admit(
        requests_of([100] * 40, priority="batch", deadline=1.0)
    )  # alone late in its lane, and tried all the same
    queue.admit(requests_of([100] * 3, deadline=1.0))  # 0.6 s, before all the others
    with pytest.raises(OverloadedError, match=r"3 texts wait that are due before this one, 0.9 s .* is in 1 s") as late:
        queue.admit(requests_of([150], deadline=1.0))
    assert late.value.retry_after == pytest.approx(0.9 - PROMISED * 1.0)
    before = queue.requests
    queue.admit(requests_of([150], deadline=0.5))  # it goes before those, too
    queue.admit(requests_of([150], deadline=1.0), bounded=False)
    queue.admit(requests_of([150], deadline=2.0))  # 0.3 + 0.3 + 0.6 + 0.3 s
    queue.admit(requests_of([150]))
    assert queue.requests == before + 4


def test_an_answer_given_twice_counts_once() -> None:
    first, second = requests_of([1, 1])
    first.call.answer(0, Done(value="a", queued=0.0, ran=0.0, batch_tokens=1))
    first.call.answer(0, Done(value="b", queued=0.0, ran=0.0, batch_tokens=1))
    assert not first.call.over
    second.call.answer(1, Done(value="c", queued=0.0, ran=0.0, batch_tokens=1))
    assert [outcome.value for outcome in first.call.future.result(0) if isinstance(outcome, Done)] == ["b", "c"]


def test_a_full_queue_plans_in_milliseconds() -> None:
    queue = Queue(plan, WIDE)
    queue.admit(requests_of([1 + i * 37 % 100 for i in range(10_000)]))
    seconds = []
    while queue.requests:
        started = time.perf_counter()
        queue.take(0.0)
        seconds.append(time.perf_counter() - started)
    # The median, since the machine may stop for a while; no micro-batch looks at more than a window.
    assert sorted(seconds)[len(seconds) // 2] < 0.01
