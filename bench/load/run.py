"""One run: several servers in turns, each under loads from light to more than it can carry, round after round."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from nopad.bench.load.arrivals import Arrivals
from nopad.bench.load.client import Ask, Check, Client, Outcome, closed_loop, open_loop, session
from nopad.bench.load.endpoints import Target
from nopad.bench.load.figures import Window, passes, step_of
from nopad.bench.load.schema import LoadReport, Step
from nopad.bench.load.texts import Pool, asks_of

# Without rates: shares of what the server answers to callers who wait for their answers.
LADDER = (0.25, 0.5, 0.7, 0.85, 1.0, 1.2)
CAPACITY_CALLERS = 32
AROUND = 3  # rates on either side of the place where the target is first missed
REFINED = 2  # loads more, between the highest that was carried and the next
CLOSED_ASKS = 4096
DEADLINE = "x-request-timeout-ms"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    rates: tuple[float, ...] = ()  # requests/s
    sweep: bool = True  # without rates: each server's own, from its capacity
    callers: tuple[int, ...] = ()  # closed loops of so many callers
    arrivals: Arrivals = field(default_factory=Arrivals)
    rounds: int = 3
    seconds: float = 20.0
    warmup: float = 2.0
    each: int = 1  # texts of a request
    target: float | None = None  # p99, seconds
    deadline: float | None = None  # seconds, told to the server
    timeout: float = 30.0  # seconds until the client gives up
    seed: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def window(self) -> Window:
        """What counts of a step."""
        return Window(warmup=self.warmup, seconds=self.seconds)


class Run:
    """Fills a report, step by step. `publish` is called after each; `show` says what is going on."""

    def __init__(
        self,
        plan: Plan,
        targets: Sequence[Target],
        pool: Pool,
        report: LoadReport,
        *,
        check: Check | None,
        publish: Callable[[LoadReport], None],
        show: Callable[..., None],
    ) -> None:
        self._plan, self._targets, self._pool, self._check = plan, targets, pool, check
        self.report = report
        self._publish, self._show = publish, show
        self._rates: dict[str, list[float]] = {}
        self._done = 0

    async def measure(self) -> None:
        """All rounds. The servers take turns in random order at every rung of their ladders."""
        plan, order = self._plan, random.Random(self._plan.seed)
        for target in self._targets:
            await self._settle(target)
        for number in range(plan.rounds):
            for callers in plan.callers:
                for target in order.sample(self._targets, len(self._targets)):
                    await self._closed(target, callers, number)
            for rung in range(max(map(len, self._rates.values()), default=0)):
                for target in order.sample(self._targets, len(self._targets)):
                    rates = self._rates[target.endpoint.name]
                    if rung < len(rates):
                        await self._open(target, rates[rung], number)
            if number == 0 and plan.sweep and not plan.rates and plan.target is not None:
                await self._refine(order)
        self.report = dataclasses.replace(self.report, complete=True)
        self._publish(self.report)

    async def _settle(self, target: Target) -> None:
        """Warm the server up, and find its rates."""
        name, plan = target.endpoint.name, self._plan
        if plan.rates or not plan.sweep:
            self._rates[name] = list(plan.rates)
            return
        self._show(f"{name}: {CAPACITY_CALLERS} callers, to find its capacity")
        window = plan.window
        start, outcomes, cpu = await self._ask_closed(target, CAPACITY_CALLERS, window, seed=plan.seed)
        about = {"mode": "closed", "load": CAPACITY_CALLERS, "round": 0}
        step = self._step(target, outcomes, start=start, window=window, client_cpu=cpu, **about)
        self._add(step)
        self._rates[name] = [_rounded(share * step.answered) for share in LADDER] if step.answered > 0 else []

    async def _refine(self, order: random.Random) -> None:
        """More rates where each server's target is missed first. Later rounds repeat the rates around that place."""
        for target in order.sample(self._targets, len(self._targets)):
            name = target.endpoint.name
            steps = [step for step in self.report.steps if step.endpoint == name and step.mode == "open"]
            carried = max((step.load for step in steps if passes(step)), default=0.0)
            missed = min((step.load for step in steps if not passes(step) and step.load > carried), default=None)
            if missed is None:
                continue
            low, high = carried, missed
            for _ in range(REFINED):
                middle = _rounded((low + high) / 2)
                step = await self._open(target, middle, 0)
                low, high = (middle, high) if passes(step) else (low, middle)
                self._rates[name].append(middle)
            rates = sorted(set(self._rates[name]))
            best = sum(rate <= low for rate in rates)
            self._rates[name] = rates[max(0, best - AROUND) : best + AROUND]

    async def _open(self, target: Target, rate: float, number: int) -> Step:
        plan, name = self._plan, target.endpoint.name
        self._say(f"{name}: {rate:g} requests/s, round {number + 1} of {plan.rounds}")
        seed = _seed(plan.seed, number, rate)  # the same for every server
        times = plan.arrivals.times(rate, plan.window.end, seed)
        asks = self._asks(target, len(times), seed)
        async with self._client(target) as client:
            cpu, began = time.process_time(), time.perf_counter()
            start, outcomes = await open_loop(client, times.tolist(), asks)
            busy = (time.process_time() - cpu) / (time.perf_counter() - began)
        about = {"mode": "open", "load": rate, "round": number}
        step = self._step(target, outcomes, start=start, window=plan.window, client_cpu=busy, **about)
        self._add(step)
        return step

    async def _closed(self, target: Target, callers: int, number: int) -> None:
        plan = self._plan
        self._say(f"{target.endpoint.name}: {callers} callers, round {number + 1} of {plan.rounds}")
        seed, about = _seed(plan.seed, number, callers), {"mode": "closed", "load": callers, "round": number}
        start, outcomes, cpu = await self._ask_closed(target, callers, plan.window, seed=seed)
        self._add(self._step(target, outcomes, start=start, window=plan.window, client_cpu=cpu, **about))

    async def _ask_closed(
        self, target: Target, callers: int, window: Window, *, seed: int
    ) -> tuple[float, list[Outcome], float]:
        asks = self._asks(target, CLOSED_ASKS, seed)
        async with self._client(target) as client:
            cpu = time.process_time()
            start, outcomes = await closed_loop(client, callers, window.end, asks)
            return start, outcomes, (time.process_time() - cpu) / (time.perf_counter() - start)

    @asynccontextmanager
    async def _client(self, target: Target) -> AsyncIterator[Client]:
        headers = dict(self._plan.headers)
        if self._plan.deadline is not None:
            headers[DEADLINE] = str(round(1000 * self._plan.deadline))
        async with session(headers) as pool:
            yield Client(pool, target.url, timeout=self._plan.timeout, check=self._check)

    def _asks(self, target: Target, count: int, seed: int) -> list[Ask]:
        extra: dict[str, Any] = {}
        if self._plan.deadline is not None and target.endpoint.protocol == "kserve":
            extra["parameters"] = {"timeout": round(1e6 * self._plan.deadline)}
        return asks_of(
            self._pool, target.protocol, target.endpoint.model, count, each=self._plan.each, seed=seed, extra=extra
        )

    def _step(self, target: Target, outcomes: list[Outcome], **of: Any) -> Step:
        return step_of(
            outcomes,
            endpoint=target.endpoint.name,
            target=self._plan.target,
            tokens=self._pool.tokens,
            **of,
        )

    def _add(self, step: Step) -> None:
        self.report = dataclasses.replace(self.report, steps=(*self.report.steps, step))
        self._publish(self.report)

    def _say(self, message: str) -> None:
        self._done += 1
        loads = sum(map(len, self._rates.values())) + len(self._plan.callers) * len(self._targets)
        self._show(message, self._done, self._plan.rounds * loads)


def _seed(seed: int, number: int, load: float) -> int:
    return random.Random(f"{seed} {number} {load}").getrandbits(32)


def _rounded(rate: float) -> float:
    """Three significant digits: rates that people read, and that are the same number in every round."""
    return float(f"{rate:.3g}")
