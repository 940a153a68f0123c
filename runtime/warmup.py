"""Running an opened model on the shapes that it will meet, so that no user pays for what an engine does only once.

Engines allocate, compile or choose kernels when a shape comes for the first time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nopad.runtime.batching import WINDOW
from nopad.runtime.errors import TextError
from nopad.runtime.inference import PROBE
from nopad.runtime.model import Model

WARM_SECONDS = 10.0
SHORT, TYPICAL = 8, 32  # tokens of a text


@dataclass(frozen=True, kw_only=True)
class Warmed:
    """What a warm-up has done."""

    runs: int
    skipped: int  # shapes that would have taken too long, or that were left out since it was told to stop
    seconds: float


def warm_up(model: Model, *, seconds: float = WARM_SECONDS, stop: Callable[[], bool] = lambda: False) -> Warmed:
    """Run each of `shapes` once, the short ones first, past the scheduler.

    The first is always run; a later one is left out if, by the time that the others took, it would exceed `seconds` in
    all. `stop` is asked before each. Raises `EngineError` if no engine can run one of them.
    """
    started = time.monotonic()
    batches = list(shapes(model))
    frame = _frame(model)
    runs, per_token = 0, 0.0
    for lengths in sorted(batches, key=sum):
        began = time.monotonic()
        if stop():
            break
        if runs and began - started + per_token * sum(lengths) > seconds:
            continue
        model.run_ids([_ids(frame, length) for length in lengths])
        runs += 1
        per_token = (time.monotonic() - began) / sum(lengths)
    return Warmed(runs=runs, skipped=len(batches) - runs, seconds=time.monotonic() - started)


def shapes(model: Model) -> Iterator[list[int]]:
    """Token lengths of the micro-batches: of each profile its best and its largest shape; for an engine without
    profiles a short text, a full micro-batch and a text of the model's full length.
    """
    longest = model.manifest.max_length
    for profile in model.profiles:
        for place in (1, 2):
            lengths = _spread(profile.tokens[place], profile.sequences[place], min(profile.longest[place], longest))
            if model.takes(lengths):
                yield lengths
    if not model.profiles:
        typical = min(TYPICAL, longest)
        yield [min(SHORT, longest)]
        yield [typical] * min(WINDOW, max(1, model.token_budget // typical))
        yield [longest]


def _spread(tokens: int, sequences: int, longest: int) -> list[int]:
    """At most `sequences` lengths up to `longest`, the first as long as possible, together about `tokens`."""
    first = max(1, min(longest, tokens - sequences + 1))
    rest = min(sequences - 1, tokens - first)
    if rest < 1:
        return [first]
    return [first, *[min(longest, max(1, (tokens - first) // rest))] * rest]


def _frame(model: Model) -> list[int]:
    (tokens,) = model.encode([PROBE])
    assert not isinstance(tokens, TextError)  # `load` has run it
    return tokens.input_ids


def _ids(frame: list[int], length: int) -> list[int]:
    """So many token ids, between the first and the last of a real text."""
    return [frame[0], *[frame[len(frame) // 2]] * (length - 2), frame[-1]][:length]
