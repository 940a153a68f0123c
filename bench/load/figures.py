"""From outcomes to figures: percentiles, throughput, goodput, and what several rounds show. Knows no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nopad.bench.load.client import RIGHT, Outcome
from nopad.bench.load.schema import Latency, LoadReport, Step
from nopad.bench.report.intervals import Interval, median_interval

LAG = 0.010  # seconds: a client that sends later than this, and
LAG_SHARE = 0.10  # than this share of the latency itself, measures itself
BUSY = 0.85  # CPU seconds a second of a client that is at its own limit
ENOUGH_FOR_P999 = 1000
PASS = 0.99  # the share of a load that must be answered within the target: its p99


@dataclass(frozen=True, kw_only=True)
class Window:
    """What counts: requests planned after `warmup` seconds, for `seconds`."""

    warmup: float
    seconds: float

    @property
    def end(self) -> float:
        """Seconds from the start of a step to the end of its arrivals."""
        return self.warmup + self.seconds


def latency_of(seconds: Sequence[float]) -> Latency | None:
    """Percentiles of latencies; None of none."""
    if not len(seconds):
        return None
    values = np.asarray(seconds, dtype=np.float64)
    p50, p90, p99, p999, most = map(float, np.percentile(values, [50, 90, 99, 99.9, 100]))
    tail = p999 if len(values) >= ENOUGH_FOR_P999 else None
    return Latency(mean=float(values.mean()), p50=p50, p90=p90, p99=p99, p999=tail, most=most)


def step_of(
    outcomes: Sequence[Outcome],
    *,
    endpoint: str,
    round: int,
    mode: Literal["open", "closed"],
    load: float,
    start: float,
    window: Window,
    target: float | None,
    tokens: Sequence[int] | None,
    client_cpu: float,
) -> Step:
    """The figures of one step; `tokens` are those of each text."""
    begin, end = start + window.warmup, start + window.end
    counted = [outcome for outcome in outcomes if begin <= outcome.planned < end]
    came = [outcome for outcome in outcomes if outcome.kind == RIGHT and begin <= outcome.done < end]
    latencies = [outcome.done - outcome.planned for outcome in counted if outcome.kind == RIGHT]
    texts = [index for outcome in came for index in outcome.ask.texts]
    lags = [outcome.sent - outcome.planned for outcome in counted]
    latency = latency_of(latencies)
    lag = float(np.percentile(lags, 99)) if lags else 0.0
    late = lag > max(LAG, LAG_SHARE * (latency.p99 if latency else 0.0))
    note = "the client sent too late" if late else "the client was busy" if client_cpu > BUSY else ""
    return Step(
        endpoint=endpoint,
        round=round,
        mode=mode,
        load=load,
        seconds=window.seconds,
        requests=len(counted),
        right=len(latencies),
        errors=dict(Counter(outcome.kind for outcome in counted if outcome.kind != RIGHT)),
        latency=latency,
        answered=len(came) / window.seconds,
        texts=len(texts) / window.seconds,
        tokens=None if tokens is None else sum(tokens[index] for index in texts) / window.seconds,
        within=sum(at <= target for at in latencies) / len(counted) if counted and target is not None else None,
        lag_p99=lag,
        client_cpu=client_cpu,
        valid=not note,
        note=note,
    )


def passes(step: Step) -> bool:
    """Whether the load was carried: its p99 is within the target, refused and failed requests counted as late."""
    return step.valid and step.within is not None and step.within >= PASS


def round_goodputs(report: LoadReport, endpoint: str) -> dict[int, float]:
    """Requests/s answered within the target at the highest load that was carried, by round; 0 where none was."""
    best: dict[int, float] = {}
    for step in report.steps:
        if step.endpoint == endpoint and step.mode == "open" and step.good is not None:
            best[step.round] = max(best.get(step.round, 0.0), step.good if passes(step) else 0.0)
    return best


def goodput(report: LoadReport, endpoint: str) -> Interval | None:
    """The median of the rounds' goodputs, with its interval; None without a target or an open loop."""
    best = round_goodputs(report, endpoint)
    return median_interval(list(best.values())) if best else None


def times_as_much(report: LoadReport, endpoint: str, other: str) -> Interval | None:
    """How many times the other's goodput an endpoint has, paired by round; None where the other carried no load."""
    mine, theirs = round_goodputs(report, endpoint), round_goodputs(report, other)
    ratios = [mine[number] / theirs[number] for number in sorted(mine.keys() & theirs.keys()) if theirs[number]]
    return median_interval(ratios) if ratios else None


def most_answered(report: LoadReport, endpoint: str) -> float:
    """The most right answers/s of any step."""
    return max((step.answered for step in report.steps if step.endpoint == endpoint), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Level:
    """One endpoint under one load, over all rounds: medians of the rounds, with their intervals."""

    endpoint: str
    mode: str
    load: float
    steps: tuple[Step, ...]
    p50: Interval | None
    p90: Interval | None
    p99: Interval | None
    p999: Interval | None
    answered: Interval
    texts: Interval
    tokens: Interval | None
    good: Interval | None
    errors: dict[str, int]

    @property
    def passed(self) -> int:
        """In how many rounds the load was carried."""
        return sum(map(passes, self.steps))


def levels(report: LoadReport, endpoint: str, mode: str) -> list[Level]:
    """The loads of an endpoint, the smallest first."""
    groups: dict[float, list[Step]] = {}
    for step in report.steps:
        if (step.endpoint, step.mode) == (endpoint, mode):
            groups.setdefault(step.load, []).append(step)
    return [_level(endpoint, mode, load, group) for load, group in sorted(groups.items())]


def _level(endpoint: str, mode: str, load: float, steps: Sequence[Step]) -> Level:
    def over(values: Iterable[float | None]) -> Interval | None:
        known = [value for value in values if value is not None]
        return median_interval(known) if known else None

    answered = [step.latency for step in steps if step.latency is not None]
    errors: Counter[str] = Counter()
    for step in steps:
        errors.update(step.errors)
    return Level(
        endpoint=endpoint,
        mode=mode,
        load=load,
        steps=tuple(steps),
        p50=over(at.p50 for at in answered),
        p90=over(at.p90 for at in answered),
        p99=over(at.p99 for at in answered),
        p999=over(at.p999 for at in answered),
        answered=median_interval([step.answered for step in steps]),
        texts=median_interval([step.texts for step in steps]),
        tokens=over(step.tokens for step in steps),
        good=over(step.good for step in steps),
        errors=dict(errors),
    )
