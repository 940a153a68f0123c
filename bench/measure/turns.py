"""The measurement itself: opened subjects take turns on one workload, in rounds of random order. Writes nothing.

Before a turn the machine rests, so that the last library's spinning threads do not slow the next; short calls are
repeated within a turn, after an untimed call that warms the caches.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nopad.bench.measure.child import in_calls
from nopad.bench.subjects.spec import Runner
from nopad.bench.workloads import Texts
from nopad.runtime.errors import UsageError
from nopad.runtime.types import FloatArray

PAUSE_SECONDS = 0.05
SHORT_SECONDS = 0.1  # calls below it are preceded by a call that is not timed
TURN_SECONDS = 0.3  # a turn repeats its call until it lasts about this long
MOST_CALLS = 10


@dataclass(kw_only=True)
class Times:
    """The times of one subject's turns."""

    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)


def require_threads(running: Mapping[str, int], threads: int) -> None:
    """Raises `UsageError` if a library does not run with `threads` threads; `running`: those of each subject."""
    for name, number in running.items():
        if number != threads:
            raise UsageError(
                f"{name} runs with {number} threads, not {threads}, so it cannot be compared: run with --threads "
                f"{number}, or leave it out"
            )


def warm_up(runner: Runner, texts: Texts) -> tuple[list[FloatArray], float]:
    """Answers of the first pass, and about how long a pass takes."""
    batch = texts.workload.batch
    start = time.perf_counter()
    answers = in_calls(runner.run, texts.texts, batch)
    seconds = time.perf_counter() - start
    if seconds < SHORT_SECONDS:
        seconds = min(_timed(runner, texts) for _ in range(3))
    return answers, seconds


def take_turns(
    runners: Mapping[str, Runner],
    texts: Texts,
    estimates: Mapping[str, float],
    *,
    rounds: range,
    order: random.Random,
    deadline: float | None,
    each_round: Callable[[Mapping[str, Times]], None],
    failed: Callable[[str, Exception], None],
) -> Mapping[str, Times]:
    """Time every runner once in each round (numbers from `rounds`), until the next round would pass `deadline`.

    `each_round` is called after every round with all times so far; `failed` with a subject that raised, which is left
    out from then on.
    """
    times = {name: Times() for name in runners}
    alive = list(runners)
    needed = sum(estimates.values())
    for number in rounds:
        if deadline is not None and time.monotonic() + needed > deadline and number != rounds.start:
            break
        started = time.monotonic()
        order.shuffle(alive)
        for name in list(alive):
            try:
                seconds = _turn(runners[name], texts, estimates[name])
            except Exception as error:
                alive.remove(name)
                times[name] = Times()
                failed(name, error)
                continue
            times[name].seconds += seconds
            times[name].rounds += [number] * len(seconds)
        needed = time.monotonic() - started
        each_round(times)
    return times


def _turn(runner: Runner, texts: Texts, estimate: float) -> list[float]:
    time.sleep(PAUSE_SECONDS)
    if estimate < SHORT_SECONDS:
        _timed(runner, texts)
    calls = max(1, min(MOST_CALLS, round(TURN_SECONDS / max(estimate, 1e-6))))
    gc.disable()  # else the collector would run in some subject's turn, by chance
    try:
        return [_timed(runner, texts) for _ in range(calls)]
    finally:
        gc.enable()


def _timed(runner: Runner, texts: Texts) -> float:
    batch = texts.workload.batch
    start = time.perf_counter()
    in_calls(runner.run, texts.texts, batch)
    return time.perf_counter() - start


def groups_that_fit(
    needs: Sequence[tuple[str, int]], first: str | None, room: int
) -> tuple[list[list[str]], list[str]]:
    """Subjects in groups that fit in `room` bytes together, each group with `first`; and those that fit in none.

    `needs` are names with their peak memory, in order of preference. Ratios need only the reference
    in the same round.
    """
    sizes = dict(needs)
    left_out = [name for name, size in needs if size + (sizes.get(first or "", 0) if name != first else 0) > room]
    if first in left_out:  # then no subject has to fit beside it
        first = None
        left_out = [name for name, size in needs if size > room]
    shared = sizes.get(first or "", 0)
    groups: list[list[str]] = []
    used: list[int] = []
    for name, size in needs:
        if name == first or name in left_out:
            continue
        place = next((i for i, bytes_used in enumerate(used) if bytes_used + size <= room), len(groups))
        if place == len(groups):
            groups.append([])
            used.append(shared)
        groups[place].append(name)
        used[place] += size
    if first in sizes:
        groups = [[str(first), *group] for group in groups] or [[str(first)]]
    return groups, left_out
