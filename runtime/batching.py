"""How texts are grouped before any engine runs: windows of texts, and micro-batches under a token budget.

Numbers and plans only: the runtime, `nopad plan`, the gate and bench can plan without opening an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nopad.model.packing import plan_batches, round_up
from nopad.runtime.profiles import ShapeProfile

T = TypeVar("T")
# Texts that are tokenized and planned together: enough to sort by length, few enough to fit in memory. Also the most
# texts of a micro-batch.
WINDOW = 512
WINDOW_CHARACTERS = 2_000_000  # closes a window of long texts early: the tokenizer needs 50 bytes a character
# Tokens of a micro-batch. On a CPU, more gain nothing (the matrices are large enough) and cost cache and memory; with
# fewer, a GPU idles.
CPU_TOKENS = 2048
GPU_TOKENS = 16_384
# Micro-batches of this size stay in the cache and pad little; 2 threads gain nothing from more (docs/findings.md).
TOKENS_PER_THREAD = 256
LEAST_TOKENS = 512
# A micro-batch with this part of its budget is not filled up with texts that are much shorter.
CLOSE_SHARE = 4


def cpu_token_budget(threads: int) -> int:
    """Tokens of a micro-batch that suit the kernels of ONNX Runtime and OpenVINO on so many threads."""
    return min(CPU_TOKENS, max(LEAST_TOKENS, TOKENS_PER_THREAD * threads))


def windows(items: Iterable[T], text: Callable[[T], object]) -> Iterator[list[T]]:
    """Group `items` lazily into lists of at most `WINDOW` items and about `WINDOW_CHARACTERS` characters.

    `text` returns an item's text (or pair of texts). `items` may be endless.
    """
    window: list[T] = []
    held = 0
    for item in items:
        window.append(item)
        held += characters(text(item))
        if len(window) == WINDOW or held >= WINDOW_CHARACTERS:
            yield window
            window, held = [], 0
    if window:
        yield window


def characters(text: object) -> int:
    """Characters of a text or of a pair of texts; 0 for what is neither."""
    return sum(len(part) for part in (text if isinstance(text, tuple) else (text,)) if isinstance(part, str))


@dataclass(frozen=True, kw_only=True)
class BatchPlanner:
    """Plans micro-batches for one opened engine and its file."""

    engine_tokens: int  # tokens of a micro-batch that suit the engine
    requested_tokens: int | None = None  # tokens of a micro-batch, by the caller's choice; None: `engine_tokens`
    profiles: tuple[ShapeProfile, ...] = ()  # the shapes that the engine takes; () for any
    token_multiple: int = 1  # a packed stream's length is a multiple of this
    padded: bool = False  # the file computes a padded matrix, not a packed stream

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch."""
        return self.requested_tokens or self.engine_tokens

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Micro-batches of texts with these token lengths: indices into `lengths`, each once, longest first."""
        if self.profiles:
            return plan_in_profiles(
                lengths,
                self.profiles,
                token_budget=self.requested_tokens,
                max_sequences=WINDOW,
                multiple=self.token_multiple,
            )
        return plan_batches(
            lengths,
            token_budget=self.token_budget,
            max_sequences=WINDOW,
            padded=self.padded,
            square_budget=self.engine_tokens,
            close_tokens=self.token_budget // CLOSE_SHARE,
        )

    def takes(self, lengths: Sequence[int]) -> bool:
        """Whether the engine can run texts with these token lengths in one micro-batch."""
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

    A text goes to the narrowest profile that takes it, so it shares no batch with a text that needs a wider profile. A
    batch below its profile's minima is planned again with the texts of the next wider profile. A text that fits no
    profile gets a batch of its own, for another engine to answer. `token_budget` None: the profile's maximum.
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
            # Only a minimum can be missed, and only where no text of the batch would meet it alone.
            if profile.admits(tokens, len(members), max(lengths[i] for i in members)):
                batches.append(members)
                waiting = sorted(set(waiting) - set(members))
    batches += [[index] for index in waiting]
    # Longest first, as in plan_batches.
    return sorted(batches, key=lambda batch: -max(lengths[i] for i in batch))
