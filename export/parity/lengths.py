"""The gate's grid: texts of every length at which a wrong window, block or position shows, alone and in one batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from nopad.export.parity.bounds import Row, answer_rows, difference, scaled
from nopad.export.parity.samples import SAMPLES
from nopad.export.parity.trial import DEFAULT_LONGEST, Trial
from nopad.export.reference.transformers import Reference
from nopad.model.config import attention_block
from nopad.model.head import BARE
from nopad.runtime.predictor import Model
from nopad.runtime.types import FloatArray

_MIXED_LONGEST = 1024
_NO_WINDOW = 64  # half window of a model without windows: any would do


def grid_case(tokens: int, mixed: bool) -> str:
    """The `case` of a row of logits: a text of so many tokens, alone or among others."""
    return f"{tokens} tokens, {'in a mixed batch' if mixed else 'alone'}"


def read_grid_case(case: str) -> tuple[int, bool] | None:
    """The arguments of `grid_case`; None for the case of another check."""
    match = re.fullmatch(r"(\d+) tokens, (alone|in a mixed batch)", case)
    return (int(match[1]), match[2] != "alone") if match else None


def lengths(trial: Trial) -> Iterator[Row]:
    """Logits of each length, alone and mixed; that both are the same; that no answer is all zero."""
    model, reference, bounds = trial.model, trial.reference, trial.bounds
    window = model.manifest.half_window
    half_window = _NO_WINDOW if window is None else window
    # Blocks have edges in every graph, even where the stream needs no filler.
    grid = length_grid(half_window, attention_block(half_window), model.manifest.max_length, trial.longest)
    grid = [length for length in grid if model.takes([length])]  # another engine answers the rest
    sequences = list(_sequences(reference, grid))
    expected, alone = [], []
    for done, ids in enumerate(sequences):
        trial.progress(f"parity: lengths 1 to {grid[-1]}", done, len(sequences))
        expected.append(reference.logits(ids))
        alone.append(model.run_ids([ids])[0])
    mixed: dict[int, FloatArray] = {}
    for members in _mixed_batches(model, grid):
        for i, row in zip(members, model.run_ids([sequences[i] for i in members]), strict=True):
            mixed.setdefault(i, row)
    for i, (length, want) in enumerate(zip(grid, expected, strict=True)):
        for among, got in ((False, alone[i]), (True, mixed[i])):
            yield from answer_rows(grid_case(length, among), got, want, bounds, embedding=model.task in BARE)
        value = difference(alone[i], mixed[i])
        yield Row.at_most("batch invariance", f"{length} tokens", value, scaled(bounds.invariance, want))
    zeros = sum(not row.any() for row in [*alone, *mixed.values()])
    yield Row.at_most("no all-zero answer", "all lengths", float(zeros), 0.0)


def length_grid(half_window: int, block: int, max_length: int, longest: int = DEFAULT_LONGEST) -> list[int]:
    """Lengths in tokens at which a wrong window, block or position shows.

    Up to `longest`, or to the window's last edge where that is longer.
    """
    edges = {1, 2, 511, 512, 2048, 8192}
    longest = max(longest, 2 * half_window + 1)
    for step in {half_window, block, 2 * half_window, 2 * block} - {0, -2}:
        edges |= {step - 1, step, step + 1}
    edges.add(half_window + 2)  # the shortest text whose ends do not see one another
    return sorted(n for n in edges if 1 <= n <= min(max_length, longest))


def _sequences(reference: Reference, lengths: Sequence[int]) -> Iterator[list[int]]:
    """Real sentences' token ids, cut and framed to exact lengths; each length begins elsewhere in the text."""
    stream = reference.content_ids(" ".join(SAMPLES))
    for n, length in enumerate(lengths):
        first, last = reference.frame
        content = [stream[(17 * n + i) % len(stream)] for i in range(max(0, length - 2))]
        yield [first, *content, last][:length] if length > 1 else [first]


def _mixed_batches(model: Model, lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the mixed batches: all lengths up to `_MIXED_LONGEST` in one, each longer text with a short text.

    Every text of a batch costs as much attention as the longest. A batch that no profile takes is split as the runtime
    would split it.
    """
    together = [i for i, length in enumerate(lengths) if length <= _MIXED_LONGEST]
    short = together[len(together) // 2] if together else 0
    longer = [[short, i] for i, length in enumerate(lengths) if length > _MIXED_LONGEST and i != short]
    groups = [together, *longer] if together else [[0], *longer]
    batches = []
    for members in groups:
        sizes = [lengths[i] for i in members]
        parts = [range(len(members))] if model.takes(sizes) else model.plan(sizes)
        batches += [[members[i] for i in part] for part in parts]
    return batches
