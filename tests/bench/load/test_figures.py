"""Percentiles and goodput from outcomes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopad.bench.load.client import RIGHT, Ask, Outcome
from nopad.bench.load.figures import Window, goodput, latency_of, passes, step_of, times_as_much
from nopad.bench.load.schema import Endpoint, LoadReport, Step, Workload

ASK = Ask(texts=(0,), body=b"{}")


def outcome(planned: float, latency: float, kind: str = RIGHT, lag: float = 0.0) -> Outcome:
    return Outcome(ask=ASK, planned=planned, sent=planned + lag, done=planned + latency, kind=kind)


def step(outcomes: list[Outcome], **of: Any) -> Step:
    about: dict[str, Any] = {"endpoint": "a", "round": 0, "mode": "open", "load": 10.0, "target": 0.1, "tokens": [7]}
    about["client_cpu"] = 0.1
    return step_of(outcomes, start=0.0, window=Window(warmup=1.0, seconds=10.0), **about | of)


def report(*steps: Step) -> LoadReport:
    endpoints = tuple(Endpoint(name=name, url="http://x", protocol="openai") for name in ("a", "b"))
    return LoadReport(command="", created="", complete=True, machine={}, versions={}, settings={}, target_p99=0.1,
                      endpoints=endpoints, workload=Workload(sources=("t",), texts=1), steps=steps)  # fmt: skip


@given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=300))
def test_percentiles_are_ordered_and_bounded(seconds: list[float]) -> None:
    latency = latency_of(seconds)
    assert latency is not None and latency.p999 is None
    assert min(seconds) <= latency.p50 <= latency.p90 <= latency.p99 <= latency.most == max(seconds)


def test_percentiles_of_known_latencies() -> None:
    latency = latency_of([n / 1000 for n in range(1001)])
    assert latency is not None and latency_of([]) is None
    assert (latency.p50, latency.p90, latency.p99, latency.p999) == pytest.approx((0.5, 0.9, 0.99, 0.999))


def test_what_counts_is_planned_after_the_warm_up_and_answers_count_where_they_come_in() -> None:
    made = step(
        [outcome(0.5, 0.9), outcome(2.0, 0.05), outcome(3.0, 0.2), outcome(4.0, 0.05, "429"), outcome(10.9, 5.0)]
    )
    assert (made.requests, made.right, made.errors) == (4, 3, {"429": 1})
    assert made.within == 0.25 and made.good == pytest.approx(0.1) and made.offered == 0.4
    assert made.answered == made.texts == pytest.approx(0.3) and made.tokens == pytest.approx(
        2.1
    )  # not the one at 15.9


def test_a_refused_request_is_a_late_one() -> None:
    answered = [outcome(1 + n / 100, 0.01) for n in range(100)]
    assert passes(step(answered)) and passes(step([*answered[:99], outcome(2, 0.01, "503")]))
    assert not passes(step([*answered[:98], outcome(2, 0.01, "429"), outcome(2, 0.01, "timeout")]))
    assert not passes(step(answered, target=None))


def test_a_client_that_sends_late_measures_itself() -> None:
    late = step([outcome(1 + n / 100, 0.05, lag=0.02) for n in range(100)])
    assert not late.valid and "too late" in late.note and not passes(late)
    small = step([outcome(1 + n / 100, 0.9, lag=0.02) for n in range(100)], target=1.0)
    assert small.valid  # beside what the server took, it does not matter
    assert not step([outcome(2, 0.01)], client_cpu=0.95).valid


def test_goodput_is_of_the_highest_load_that_was_carried_in_each_round() -> None:
    def at(load: float, number: int, latency: float, endpoint: str = "a") -> Step:
        planned = [1 + n / load for n in range(round(10 * load))]
        return step([outcome(t, latency) for t in planned], load=load, round=number, endpoint=endpoint)

    steps = [at(10, 0, 0.01), at(20, 0, 0.05), at(40, 0, 0.2), at(10, 1, 0.01), at(20, 1, 0.2)]
    others = [at(5, 0, 0.01, "b"), at(5, 1, 0.01, "b")]
    made = report(*steps, *others)
    best, times = goodput(made, "a"), times_as_much(made, "a", "b")
    assert best is not None and best[1] == pytest.approx(15.0)  # 20 and 10
    assert times is not None and times[1] == pytest.approx(3.0)  # 4 and 2
    assert times_as_much(report(*steps), "a", "b") is None and goodput(report(), "a") is None
