"""The measurement of `nopad tune`: which engine, file, micro-batch and threads answer a user's texts fastest here.

Settings take turns on the same texts, in rounds of random order, so that what else the machine does meets all alike.
Three steps, each of which starts from the best of the one before: engines and files, tokens of a micro-batch, threads.
Texts are tokenized beforehand: that costs every setting the same. Writes nothing.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from nopad.model.cpus import usable_cores
from nopad.model.errors import NopadError
from nopad.runtime.batching import BatchPlanner
from nopad.runtime.bundle import Bundle
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.chain import Candidate
from nopad.runtime.engines.selection import find_candidates
from nopad.runtime.errors import EnvironmentProblem
from nopad.runtime.inference import Inference
from nopad.runtime.tokenizer import TextEncoder, Tokens

SECONDS = 60.0
GAIN = 1.02  # a setting replaces the one before it only if it is faster by so much
LEAST_ROUNDS = 3
TURN_SHARE = 1 / 32  # of the time, for one turn
BLOCK_TOKENS = 512  # the least tokens of texts of neighbouring lengths, as one micro-batch has them
BLOCKS = 8  # the most of such blocks: lengths from all over the texts
BUDGETS = (0.5, 2.0, 4.0)  # of the engine's own tokens of a micro-batch
Progress = Callable[[str, int, int], None]  # what is measured, seconds done, seconds in all


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is compared."""

    engine: str
    file: str
    precision: str
    token_budget: int = 0  # tokens of a micro-batch; 0: the engine could not be opened
    threads: int | None = None  # on the CPU; None: the engine has none


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A setting and the seconds of its turns, or why it has none."""

    setting: Setting
    tokens: int  # of a turn
    seconds: tuple[float, ...] = ()
    problem: str | None = None

    @property
    def rate(self) -> float:
        """Real tokens per second: the median of the turns; 0 without one."""
        return self.tokens / statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def range(self) -> tuple[float, float]:
        """Real tokens per second of the slowest and of the fastest turn."""
        return (self.tokens / max(self.seconds), self.tokens / min(self.seconds)) if self.seconds else (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was measured, and the winner."""

    measured: tuple[Measured, ...]
    winner: Measured
    texts: int  # of a turn
    tokens: int


def tune(
    bundle: Bundle,
    encoder: TextEncoder,
    texts: Sequence[Tokens],
    *,
    sm: Callable[[], str | None],
    precisions: Sequence[str] | None = None,
    threads: int | None = None,
    seconds: float = SECONDS,
    progress: Progress = lambda message, done, total: None,
) -> Tuning:
    """Measure for about `seconds`. `precisions` None: that which `load` takes unasked; `threads` None: tries several.

    `sm` as in `find_candidates`. Raises `EnvironmentProblem` if nothing can run, and what `find_candidates` raises.
    """
    with ExitStack() as stack:
        race = _Race(bundle, encoder, texts, sm, stack, seconds, progress)
        best = race.run("engines", race.enter(threads or usable_cores(), precisions), until=0.5)
        race.close_all_but(best)
        own = best.setting.token_budget
        room = sum(text.used for text in race.sample)
        budgets = [race.with_budget(best, int(own * share)) for share in BUDGETS if own * share <= room]
        best = race.run("tokens of a micro-batch", [best, *budgets], until=0.8)
        while threads is None and (best.setting.threads or 1) > 1:  # half as many, as long as that gains
            fewer = race.with_half_the_threads(best)
            if race.run("threads", [best, fewer], until=1.0) is best:
                break
            best = fewer
        return race.result(best)


def sample_of(texts: Sequence[Tokens], tokens: float) -> list[Tokens]:
    """About so many tokens of texts: blocks of texts of neighbouring lengths, from all over the lengths."""
    ordered = sorted(texts, key=lambda text: text.used)
    if sum(text.used for text in ordered) <= tokens:
        return ordered
    blocks = max(1, min(BLOCKS, int(tokens // BLOCK_TOKENS)))
    chosen: set[int] = set()
    for block in range(blocks):
        place, taken = int((block + 0.5) / blocks * len(ordered)), 0
        while place < len(ordered) and taken < tokens / blocks:
            taken += 0 if place in chosen else ordered[place].used
            chosen.add(place)
            place += 1
    return [ordered[place] for place in sorted(chosen)]


@dataclass(kw_only=True, eq=False)
class _Contender:
    """A setting with its opened engine."""

    setting: Setting
    inference: Inference
    planner: BatchPlanner
    seconds: list[float] = field(default_factory=list)
    problem: str | None = None

    def turn(self, sample: Sequence[Tokens]) -> float:
        start = time.perf_counter()
        for batch in self.planner.plan([text.used for text in sample]):
            self.inference.run([sample[i] for i in batch])
        return time.perf_counter() - start


class _Race:
    """The contenders of one call of `tune`, their texts, and the clock."""

    def __init__(
        self,
        bundle: Bundle,
        encoder: TextEncoder,
        texts: Sequence[Tokens],
        sm: Callable[[], str | None],
        stack: ExitStack,
        seconds: float,
        progress: Progress,
    ) -> None:
        self.sample: list[Tokens] = []
        self._bundle, self._encoder, self._texts, self._sm = bundle, encoder, texts, sm
        self._stack, self._seconds, self._progress = stack, seconds, progress
        self._start = time.perf_counter()
        self._random = random.Random(0)
        self._contenders: list[_Contender] = []
        self._refused: list[Measured] = []

    def enter(self, threads: int, precisions: Sequence[str] | None) -> list[_Contender]:
        """Open every engine and file of these precisions, the most exact first; None: of the first that opens."""
        entered: list[_Contender] = []
        for candidate in self._find("auto", threads):
            if precisions is None and entered:
                precisions = (entered[0].setting.precision,)
            if precisions is not None and candidate.artifact.precision not in precisions:
                continue
            self._show(f"opening {candidate}")
            try:
                entered.append(self._open(candidate))
            except NopadError as error:
                name, artifact = candidate.name, candidate.artifact
                setting = Setting(engine=name, file=artifact.file, precision=artifact.precision)
                self._refused.append(Measured(setting=setting, tokens=0, problem=str(error)))
        if not entered:
            reasons = "; ".join(f"{one.setting.engine}: {one.problem}" for one in self._refused)
            raise EnvironmentProblem(f"{self._bundle.path} has nothing to tune here: {reasons or 'no such precision'}")
        small = sample_of(self._texts, BLOCK_TOKENS)
        turns = ([self._turn(one, small) for _ in range(2)][1] for one in entered)  # the first is slower
        seconds = next((seconds for seconds in turns if seconds is not None), self._seconds)
        rate = sum(text.used for text in small) / seconds
        self.sample = sample_of(self._texts, max(BLOCK_TOKENS, rate * self._seconds * TURN_SHARE))
        return entered

    def with_budget(self, contender: _Contender, tokens: int) -> _Contender:
        """The same engine with micro-batches of so many tokens."""
        return self._add(contender.inference, dataclasses.replace(contender.planner, requested_tokens=tokens))

    def with_half_the_threads(self, contender: _Contender) -> _Contender:
        """The same engine and file with half the threads, opened beside it."""
        setting = contender.setting
        (candidate, *_) = self._find(setting.engine, max(1, (setting.threads or 2) // 2), setting.file)
        self._show(f"opening {candidate}")
        inference = self._open(candidate).inference
        return self._add(inference, dataclasses.replace(contender.planner, requested_tokens=setting.token_budget))

    def run(self, what: str, contenders: Sequence[_Contender], until: float) -> _Contender:
        """Turns until this share of the time is over; returns the first, or the fastest if that is faster enough."""
        seconds: dict[_Contender, list[float]] = {one: [] for one in contenders}
        for one in contenders:  # not counted: an engine allocates and compiles
            self._turn(one, self.sample)
        rounds = 0
        while rounds < LEAST_ROUNDS or (len(seconds) > 1 and self._elapsed() < until * self._seconds):
            self._show(f"measuring {what}")
            seconds = {one: times for one, times in seconds.items() if one.problem is None}
            if not seconds:
                raise EnvironmentProblem(f"no engine could answer the texts: {contenders[0].problem}")
            for one in self._random.sample(list(seconds), len(seconds)):
                if (turn := self._turn(one, self.sample)) is not None:
                    seconds[one].append(turn)
                    one.seconds.append(turn)
            rounds += 1
        medians = {one: statistics.median(times) for one, times in seconds.items() if one.problem is None and times}
        if not medians:
            raise EnvironmentProblem(f"no engine could answer the texts: {contenders[0].problem}")
        first, fastest = next(iter(medians)), min(medians, key=lambda one: medians[one])
        return fastest if medians[first] >= GAIN * medians[fastest] else first

    def close_all_but(self, kept: _Contender) -> None:
        """Give the memory of the engines that have lost back."""
        for one in self._contenders:
            if one.inference is not kept.inference:
                one.inference.close()

    def result(self, winner: _Contender) -> Tuning:
        """Everything that was measured, the fastest first."""
        tokens = sum(text.used for text in self.sample)
        found = {
            one: Measured(setting=one.setting, tokens=tokens, seconds=tuple(one.seconds), problem=one.problem)
            for one in self._contenders
        }
        ordered = sorted((one for one in found.values() if one.seconds or one.problem), key=lambda one: -one.rate)
        return Tuning(measured=(*ordered, *self._refused), winner=found[winner], texts=len(self.sample), tokens=tokens)

    def _find(self, engine: str, threads: int, file: str | None = None) -> list[Candidate]:
        options = EngineOptions(threads=threads, pad_token_id=self._bundle.manifest.pad_token_id)
        return find_candidates(self._bundle, engine, options, sm=self._sm, file=file)

    def _open(self, candidate: Candidate) -> _Contender:
        inference = Inference(bundle=self._bundle, encoder=self._encoder, candidates=[candidate], fallback=False)
        self._stack.callback(inference.close)
        return self._add(inference, inference.planner)

    def _add(self, inference: Inference, planner: BatchPlanner) -> _Contender:
        chain, artifact = inference.chain, inference.artifact
        setting = Setting(
            engine=chain.chosen.name,
            file=artifact.file,
            precision=artifact.precision,
            token_budget=planner.token_budget,
            threads=chain.threads,
        )
        contender = _Contender(setting=setting, inference=inference, planner=planner)
        self._contenders.append(contender)
        return contender

    def _turn(self, contender: _Contender, sample: Sequence[Tokens]) -> float | None:
        if contender.problem is not None:
            return None
        try:
            return contender.turn(sample)
        except NopadError as error:
            contender.problem = str(error)
            return None

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _show(self, message: str) -> None:
        self._progress(message, min(int(self._elapsed()), int(self._seconds)), int(self._seconds))
