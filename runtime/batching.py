"""How texts are grouped before any engine runs: windows of texts, and micro-batches under a token budget.

Numbers and plans alone, so whoever plans (the runtime, `nopad plan`, the gate, bench) opens no engine for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nopad.model.packing import plan_batches, round_up
from nopad.runtime.profiles import ShapeProfile

T = TypeVar("T")
# Texts that are tokenized and planned together: enough to sort by length, few enough to fit in memory. A micro-batch
# holds no more of them.
WINDOW = 512
WINDOW_CHARACTERS = 2_000_000  # fewer texts where they are long: the tokenizer needs 50 bytes a character
# Tokens of a micro-batch. On CPUs more buys nothing (the matrices are large enough) and costs cache and memory; on a
# GPU fewer leave it idle.
CPU_TOKENS = 2048
GPU_TOKENS = 16_384


def windows(items: Iterable[T], text: Callable[[T], object]) -> Iterator[list[T]]:
    """`items` in lists of at most `WINDOW`, and of about `WINDOW_CHARACTERS` characters of what `text` reads in each.

    An item is read when its window is asked for, so there may be any number of them.
    """
    window: list[T] = []
    characters = 0
    for item in items:
        window.append(item)
        parts = text(item)
        characters += sum(
            len(part) for part in (parts if isinstance(parts, tuple) else (parts,)) if isinstance(part, str)
        )
        if len(window) == WINDOW or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


@dataclass(frozen=True, kw_only=True)
class BatchPlanner:
    """Plans micro-batches that suit one opened engine and the file that it runs."""

    engine_tokens: int  # of a micro-batch, as suits the engine
    asked_tokens: int | None = None  # of a micro-batch, as the caller asks; None: as suits the engine
    profiles: tuple[ShapeProfile, ...] = ()  # the shapes that the engine takes; () for any
    token_multiple: int = 1  # a packed stream's length is a multiple of this
    padded: bool = False  # the file computes a padded matrix, not a packed stream

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch."""
        return self.asked_tokens or self.engine_tokens

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Micro-batches of texts of so many tokens: indices into `lengths`, each exactly once, the longest first."""
        if self.profiles:
            return plan_in_profiles(
                lengths,
                self.profiles,
                token_budget=self.asked_tokens,
                max_sequences=WINDOW,
                multiple=self.token_multiple,
            )
        return plan_batches(
            lengths,
            token_budget=self.token_budget,
            max_sequences=WINDOW,
            padded=self.padded,
            square_budget=self.engine_tokens,
        )

    def takes(self, lengths: Sequence[int]) -> bool:
        """Whether the engine answers texts of so many tokens in one micro-batch."""
        shape = round_up(sum(lengths), self.token_multiple), len(lengths), max(lengths)
        return not self.profiles or any(profile.admits(*shape) for profile in self.profiles)


def plan_in_profiles(
    lengths: Sequence[int],
    profiles: Sequence[ShapeProfile],
    *,
    token_budget: int | None,
    max_sequences: int,
    multiple: int = 64,
) -> list[list[int]]:
    """As `plan_batches`, but each micro-batch, packed to a `multiple` of tokens, fits a profile.

    A text goes to the narrowest profile that takes it, and meets none that needs a wider one. A batch below the minima
    of its profile waits for the texts of a wider one; what no profile takes alone goes alone, for another engine to
    answer. `token_budget` None: as many tokens as the profile has.
    """
    batches: list[list[int]] = []
    waiting = list(range(len(lengths)))
    for profile in sorted(profiles, key=lambda profile: (profile.longest[2], profile.tokens[2])):
        room = profile.tokens[2] // multiple * multiple
        taken = [i for i in waiting if lengths[i] <= min(room, profile.longest[2])]
        if not taken:
            continue
        plan = plan_batches(
            [lengths[i] for i in taken],
            token_budget=room if token_budget is None else min(token_budget, room),
            max_sequences=min(max_sequences, profile.sequences[2]),
        )
        for members in ([taken[i] for i in batch] for batch in plan):
            tokens = round_up(sum(lengths[i] for i in members), multiple)
            # Only a minimum can be missed, and never by a batch of which one text would pass it alone.
            if profile.admits(tokens, len(members), max(lengths[i] for i in members)):
                batches.append(members)
                waiting = sorted(set(waiting) - set(members))
    batches += [[index] for index in waiting]
    # The longest first, as plan_batches has it.
    return sorted(batches, key=lambda batch: -max(lengths[i] for i in batch))
