"""Optimization profiles from data: the few shapes that serve a set of texts at the least expected cost within memory.

An engine reserves memory for the largest corner of a profile, all three maxima at once. A single wide profile that must
take the longest text can therefore take few sequences, so short texts run in many small micro-batches; an additional
narrow profile takes many sequences. The planner cuts the range of lengths into segments, each with a profile, and
simulates what the runtime would do: texts come in windows, each window is planned into micro-batches (`plan_batches`),
and `cost_model.py` gives the cost of each micro-batch. Dynamic programming finds the best cuts. Knows no tokenizer, no
file and no engine.
"""

from __future__ import annotations

import dataclasses
import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from nopad.model.config import EncoderConfig
from nopad.model.packing import plan_batches, round_up
from nopad.runtime.batching import GPU_TOKENS, WINDOW
from nopad.runtime.errors import UsageError
from nopad.runtime.planning.cost_model import CostModel, cost_model
from nopad.runtime.profiles import ShapeProfile

MEMORY_BYTES = 2 << 30
WINDOWS = 8  # simulated, of `WINDOW` texts each
# Share of one wide profile's cost that each further profile must save, since it costs build time and memory.
LEAST_GAIN = 0.02
# Quantiles of the length distributions (by texts, and by tokens) at which segments may be cut.
LEVELS = 10
# The memory is divided into parts; a profile is tried with these numbers of parts, and with these maxima of tokens.
PARTS = 32
SHARES = (1, 2, 4, 8, 16, 24, 32)
TOKEN_SIZES = (1024, 2048, 4096, 8192)  # and the token budget
# Without data: sentences, passages of the usual classifier, everything else.
DEFAULT_EDGES = (128, 512)

Shape = tuple[int, int, int]  # tokens with filler, sequences, longest
Architecture = EncoderConfig | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ProfileForecast:
    """A profile and its expected use. Shares refer to all texts, micro-batches to the simulated texts."""

    profile: ShapeProfile
    texts: float  # share
    tokens: float  # share
    micro_batches: int
    waste: float  # share of the executed work that is filler or padding
    launches: float  # share of the cost that is launching kernels
    cost: float  # in FLOPs, launches included, of the simulated texts
    memory_bytes: int  # of activations at the largest corner


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Proposed profiles, the narrowest first, and for comparison one wide profile within the same memory."""

    forecasts: tuple[ProfileForecast, ...]
    wide: ProfileForecast
    waste: float  # of all profiles together
    launches: float
    texts: int  # of the data
    cut: int  # of these, longer than max_length
    simulated: int  # texts
    max_length: int  # of the last profile, in tokens
    memory_bytes: int  # bound on all largest corners together
    token_budget: int

    @property
    def profiles(self) -> tuple[ShapeProfile, ...]:
        """The profiles alone."""
        return tuple(forecast.profile for forecast in self.forecasts)

    @property
    def cost_ratio(self) -> float:
        """Expected cost divided by that of one wide profile; at most 1."""
        return sum(forecast.cost for forecast in self.forecasts) / self.wide.cost

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {**dataclasses.asdict(self), "cost_ratio": self.cost_ratio}


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """Texts longer than `above` and at most `longest`, in a profile with these maxima."""

    above: int
    longest: int
    tokens: int
    sequences: int
    memory_bytes: int
    shapes: tuple[Shape, ...]  # of the simulated micro-batches
    useful: float  # FLOPs
    work: float
    cost: float


def plan_profiles(
    lengths: Iterable[int] | Mapping[int, int],
    *,
    architecture: Architecture,
    memory_bytes: int = MEMORY_BYTES,
    most: int = 4,
    block: int = 64,
    max_length: int | None = None,
    token_budget: int = GPU_TOKENS,
    keeps_scores: bool = True,
) -> Plan:
    """The 1 to `most` profiles with the least expected cost for texts of these token lengths (or length -> count).

    `memory_bytes` bounds the activations at the largest corners of all profiles together, since each has its own
    execution context (half precision; weights are extra).
    `max_length` is the longest text that the last profile takes; None: the longest in the data. It is rounded up to the
    `block`, and longer texts count as cut to it. `token_budget` is the runtime's. `keeps_scores`: see `CostModel`; True
    is the cautious choice. A profile is added only if it saves `LEAST_GAIN` of the cost of one wide profile.

    Raises `UsageError` without lengths, for lengths below 1, and if one text of `max_length` exceeds `memory_bytes`.
    """
    counts = Counter(dict(lengths) if isinstance(lengths, Mapping) else lengths)
    counts = Counter({length: count for length, count in counts.items() if count})
    if not counts or min(counts) < 1 or min(counts.values()) < 0:
        raise UsageError("planning needs texts, each of at least one token")
    if most < 1 or block < 1 or token_budget < 1 or (max_length is not None and max_length < 1):
        raise UsageError("most, block, token_budget and max_length must be positive")
    limit = max_length or max(counts)
    cut = sum(count for length, count in counts.items() if length > limit)
    used: Counter[int] = Counter()
    for length, count in counts.items():
        used[min(length, limit)] += count
    model = cost_model(architecture, block=block, keeps_scores=keeps_scores)
    search = _Search(model, _windows(used), memory_bytes, token_budget)
    edges = _edges(used, round_up(limit, block), block)
    search.check(edges[-1])
    chosen = _cheapest(search, edges, most)
    wide = search.wide(edges[-1])
    work = sum(segment.work for segment in chosen)
    cost = sum(segment.cost for segment in chosen)
    return Plan(
        forecasts=tuple(_forecast(segment, used, model) for segment in chosen),
        wide=_forecast(wide, used, model),
        waste=1 - sum(segment.useful for segment in chosen) / work,
        launches=1 - work / cost,
        texts=counts.total(),
        cut=cut,
        simulated=sum(map(len, search.windows)),
        max_length=edges[-1],
        memory_bytes=memory_bytes,
        token_budget=token_budget,
    )


def default_profiles(
    max_length: int,
    *,
    architecture: Architecture,
    block: int = 64,
) -> tuple[ShapeProfile, ...]:
    """Profiles without data: up to `DEFAULT_EDGES` tokens, and up to `max_length` (tokens, rounded up to the block).

    Each takes as many tokens and sequences as an equal share of `MEMORY_BYTES` allows; its opt shape is half of its
    tokens, in texts of full length. The last profile takes a text of `max_length` even if that exceeds its share.
    Raises `UsageError` for an architecture that is not a packed encoder's.
    """
    model = cost_model(architecture, block=block)
    top = round_up(max_length, block)
    edges = sorted({edge for edge in (round_up(edge, block) for edge in DEFAULT_EDGES) if edge < top} | {top})
    search = _Search(model, [], MEMORY_BYTES, GPU_TOKENS)
    profiles = []
    for above, longest in pairwise([0, *edges]):
        tokens, sequences = max(search.limits(above + 1, longest, PARTS // len(edges)), default=(longest, 1))
        best = max(longest, round_up(tokens // 2, block))
        profiles.append(
            ShapeProfile(
                tokens=(block, best, tokens),
                sequences=(1, min(sequences, best // longest), sequences),
                longest=(1, longest, longest),
            )
        )
    return tuple(profiles)


class _Search:
    """Segments with several candidate profiles each, and the memory these take. A segment is simulated once."""

    def __init__(self, model: CostModel, windows: list[list[int]], memory_bytes: int, token_budget: int) -> None:
        self.model = model
        self.windows = windows  # each sorted
        self._part = memory_bytes / PARTS
        self._token_budget = token_budget
        self._cache: dict[tuple[int, int], list[_Segment]] = {}

    def check(self, longest: int) -> None:
        """Raise `UsageError` unless one text of this length fits the memory."""
        need, bound = self.model.memory(longest, 1, longest), self._part * PARTS
        if need > bound:
            fused = dataclasses.replace(self.model, keeps_scores=False).memory(longest, 1, longest)
            hint = f" ({fused / 2**30:.2f} GiB if the engine keeps no attention scores)" if fused < need else ""
            raise UsageError(
                f"one text of {longest} tokens needs {need / 2**30:.2f} GiB of activations{hint}, and the memory bound "
                f"is {bound / 2**30:.2f} GiB: give more memory, or a smaller max length"
            )

    def limits(self, shortest: int, longest: int, parts: int) -> Iterator[tuple[int, int]]:
        """Maxima (tokens, sequences) for texts of `shortest` to `longest` tokens within `parts` of the memory."""
        block = self.model.block
        budget = self._token_budget // block * block
        for tokens in sorted({max(longest, min(budget, round_up(size, block))) for size in (*TOKEN_SIZES, budget)}):
            useful = range(1, 1 + max(1, min(WINDOW, tokens // shortest)))
            fitting = bisect_right(useful, parts * self._part, key=lambda n: self.model.memory(tokens, n, longest))
            if fitting:
                yield tokens, fitting

    def segment(self, above: int, longest: int) -> list[_Segment]:
        """Profiles of several sizes for texts of `above + 1` to `longest` tokens, with their costs."""
        if (above, longest) not in self._cache:
            members = [window[bisect_right(window, above) : bisect_right(window, longest)] for window in self.windows]
            shortest = min((window[0] for window in members if window), default=above + 1)
            sizes = {size for parts in SHARES for size in self.limits(shortest, longest, parts)} | {(longest, 1)}
            self._cache[above, longest] = [self._simulate(above, longest, *size, members) for size in sorted(sizes)]
        return self._cache[above, longest]

    def wide(self, longest: int) -> _Segment:
        """The best single profile for all lengths up to `longest`."""
        return min(self.segment(0, longest), key=lambda segment: (segment.cost, segment.memory_bytes))

    def parts(self, segment: _Segment) -> int:
        """Parts of the memory that a profile takes."""
        return math.ceil(segment.memory_bytes / self._part)

    def _simulate(self, above: int, longest: int, tokens: int, sequences: int, members: list[list[int]]) -> _Segment:
        shapes = []
        for window in members:
            plan = plan_batches(window, token_budget=min(tokens, self._token_budget), max_sequences=sequences)
            for batch in plan:
                real = sum(window[i] for i in batch)
                shapes.append((round_up(real, self.model.block), len(batch), window[batch[0]]))
        work = sum(self.model.work(*shape) for shape in shapes)
        return _Segment(
            above=above,
            longest=longest,
            tokens=tokens,
            sequences=sequences,
            memory_bytes=self.model.memory(tokens, sequences, longest),
            shapes=tuple(shapes),
            useful=sum(self.model.work(n, 1, n) for window in members for n in window),
            work=work,
            cost=work + self.model.launch_flops * len(shapes),
        )


def _quantiles(weights: Mapping[int, int], levels: Iterable[float]) -> list[int]:
    """Quantiles at these levels (0 to 1) of a distribution, length -> weight."""
    ordered = sorted(weights)
    sums = list(accumulate(weights[length] for length in ordered))
    return [ordered[min(bisect_left(sums, level * sums[-1]), len(ordered) - 1)] for level in levels]


def _windows(counts: Counter[int]) -> list[list[int]]:
    """A bounded sample of the lengths, even over their distribution, in shuffled windows; each window sorted."""
    size = min(counts.total(), WINDOW * WINDOWS)
    sample = _quantiles(counts, ((i + 0.5) / size for i in range(size)))
    random.Random(0).shuffle(sample)
    return [sorted(sample[start : start + WINDOW]) for start in range(0, size, WINDOW)]


def _edges(counts: Counter[int], top: int, block: int) -> list[int]:
    """Lengths at which a segment may begin or end: 0, quantiles rounded up to the block, `top`."""
    levels = [(i + 1) / LEVELS for i in range(LEVELS)]
    quantiles = _quantiles(counts, levels) + _quantiles(
        {length: length * count for length, count in counts.items()}, levels
    )
    return [0, *sorted({round_up(length, block) for length in quantiles} | {top})]


def _cheapest(search: _Search, edges: Sequence[int], most: int) -> list[_Segment]:
    """The cheapest segments that cover all lengths within the memory; each after the first saves `LEAST_GAIN`."""
    top = edges[-1]
    # For each number of profiles, end and memory taken: the cheapest segments up to that end. Costs add up.
    reached: dict[tuple[int, int], list[_Segment]] = {(0, 0): []}
    complete = []
    for _ in range(min(most, len(edges) - 1)):
        before, reached = reached, {}
        for (start, taken), segments in before.items():
            for added in (segment for end in edges if end > start for segment in search.segment(start, end)):
                place = added.longest, taken + search.parts(added)
                longer = [*segments, added]
                if place[1] <= PARTS and (place not in reached or _cost(longer) < _cost(reached[place])):
                    reached[place] = longer
        complete += [segments for (end, _), segments in reached.items() if end == top]
    fee = LEAST_GAIN * search.wide(top).cost
    return min(
        complete, key=lambda plan: (_cost(plan) + fee * len(plan), sum(segment.memory_bytes for segment in plan))
    )


def _cost(segments: Sequence[_Segment]) -> float:
    return sum(segment.cost for segment in segments)


def _forecast(segment: _Segment, counts: Counter[int], model: CostModel) -> ProfileForecast:
    members = {n: count for n, count in counts.items() if segment.above < n <= segment.longest}
    best = _typical_shape(segment, model)
    profile = ShapeProfile(
        tokens=(model.block, best[0], segment.tokens),
        sequences=(1, best[1], segment.sequences),
        longest=(1, best[2], segment.longest),
    )
    return ProfileForecast(
        profile=profile,
        texts=sum(members.values()) / counts.total(),
        tokens=sum(n * count for n, count in members.items()) / sum(n * count for n, count in counts.items()),
        micro_batches=len(segment.shapes),
        waste=1 - segment.useful / segment.work if segment.work else 0.0,
        launches=1 - segment.work / segment.cost if segment.cost else 0.0,
        cost=segment.cost,
        memory_bytes=segment.memory_bytes,
    )


def _typical_shape(segment: _Segment, model: CostModel) -> Shape:
    """The cost-weighted median micro-batch; without micro-batches, one text of full length."""
    if not segment.shapes:
        return segment.longest, 1, segment.longest
    costs = sorted((model.work(*shape) + model.launch_flops, shape) for shape in segment.shapes)
    half = segment.cost / 2
    for cost, shape in costs:
        half -= cost
        if half <= 0:
            return shape
    return costs[-1][1]
