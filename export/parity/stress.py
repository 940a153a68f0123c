"""The gate's second half: the sizes and the circumstances in which engines fail.

The first half (`lengths.py`, `sentences.py`) proves texts of up to 512 tokens, alone and a dozen in a batch. Here
`CHECKS` are, on texts whose right answers are known (`known_texts.py`):

- the largest batch that the runtime makes on any machine, and a margin: in tokens and in texts, of real lengths
- as many texts of one and two tokens
- every profile's edges, and those of the buckets that an engine may pad to
- texts of many lengths, out of order: an engine may sort them, and must put their answers back
- two batches of one shape again and again: the answers must be right, and always the same
- several batches at once, from several threads: the answers must be those to each batch alone
- a text at the model's full length (`nopad.export.parity.full_length`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

from nopad.export.parity.bounds import Bounds, Row, difference, scaled
from nopad.export.parity.full_length import full_length
from nopad.export.parity.known_texts import Ids, KnownTexts
from nopad.export.parity.trial import Check, Trial
from nopad.runtime.batching import CPU_TOKENS, WINDOW
from nopad.runtime.engines.buckets import LONGEST_STEP, TOKEN_BLOCKS
from nopad.runtime.errors import EngineError
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray

# Over the runtime's own choice of tokens, for whoever gives `load` a larger budget.
MARGIN = 1.25
CALLS = "ABAABABA"  # of two batches of one shape: each after itself, and after the other
THREADS, ROUNDS = 4, 5
# Lengths of the texts out of order: 16 texts and 528 tokens, fewer where the engine takes no such batch.
UNSORTED = range(3, 64, 4)


def stress(trial: Trial) -> Iterator[Row]:
    """The rows of all `CHECKS`, a few each; an engine that fails in a check fails its row."""
    for name, check in CHECKS.items():
        trial.progress(f"parity: {name}")
        try:
            yield from check(trial)
        except EngineError as error:
            yield Row(check=name, case="runs", value=math.inf, bound=0.0, passed=False, note=str(error))


def fill(tokens: int, sequences: int, longest: int, typical: Sequence[int]) -> list[int]:
    """Lengths of at most `sequences` texts of at most `longest` tokens, together `tokens`.

    `typical` lengths in turn, then the shortest; fewer texts where tokens are too few, longer texts where room is left.
    """
    sequences = max(1, min(sequences, tokens - longest + 1))
    lengths = [longest]
    for length in cycle(typical):
        waiting = sequences - len(lengths)
        if not waiting:
            break
        lengths.append(max(1, min(length, longest, tokens - sum(lengths) - (waiting - 1))))
    room = tokens - sum(lengths)
    for i, length in enumerate(lengths):
        more = max(0, min(longest - length, room))
        lengths[i] += more
        room -= more
    return lengths


def _large(trial: Trial) -> Iterator[Row]:
    model, texts = trial.model, trial.known
    if model.profiles:  # their edges are the largest batches
        return
    budget = max(model.token_budget, CPU_TOKENS)  # no CPU engine chooses more on any machine
    tokens = min(int(budget * MARGIN), texts.most_tokens)
    if model.artifact.layout == "padded":
        longest = min(max(texts.typical), model.manifest.max_length)
        sequences = max(1, tokens // longest)
    else:  # as nopad.model.packing.plan_batches bounds the square
        longest = min(math.isqrt(budget**2 // WINDOW), model.manifest.max_length)
        sequences = min(WINDOW, tokens - longest)
    lengths = fill(tokens, sequences, longest, texts.typical)
    yield _batch(texts, "large batch", lengths)


def _short(trial: Trial) -> Iterator[Row]:
    if trial.model.profiles:
        return
    for lengths in ([1] * WINDOW, [1, 2] * (WINDOW // 2)):
        yield _batch(trial.known, "many short texts", lengths)


def _batch(texts: KnownTexts, check: str, lengths: Sequence[int], where: str = "") -> Row:
    batch = texts.draw(lengths)
    case = f"{where}{len(lengths):,} texts, {sum(lengths):,} tokens, the longest {max(lengths):,}"
    return texts.compare(check, case, batch, texts.run(batch))


def _edges(trial: Trial) -> Iterator[Row]:
    model, texts = trial.model, trial.known
    done: set[tuple[int, ...]] = set()
    for number, profile in enumerate(model.profiles, 1):
        for edge, lengths in _edge_batches(profile, texts.typical, model.token_multiple):
            fits = max(lengths) <= model.manifest.max_length and sum(lengths) <= texts.most_tokens
            if fits and model.takes(lengths) and tuple(lengths) not in done:
                done.add(tuple(lengths))
                yield _batch(texts, "profile edges", lengths, f"profile {number}, {edge}: ")


def _edge_batches(profile: ShapeProfile, typical: Sequence[int], multiple: int) -> Iterator[tuple[str, list[int]]]:
    tokens, sequences, longest = profile.tokens, profile.sequences, profile.longest
    for place, name in enumerate(("smallest", "best", "largest")):
        yield name, fill(tokens[place], sequences[place], min(longest[place], tokens[place]), typical)
    fewest = max(sequences[0], tokens[2] // longest[2])
    yield "most tokens", [longest[2]] * fewest
    yield "longest text", [longest[2], *[1] * (sequences[0] - 1)]
    yield "most texts, of one token", [1] * sequences[2]
    yield "most texts, of one and two tokens", [1 + i % 2 for i in range(min(sequences[2], tokens[2] // 2))]
    # Buckets: the last shape of one, and the first of the next.
    step = TOKEN_BLOCKS * multiple
    middle = min(max(longest[0], LONGEST_STEP), longest[2])
    for total in (step, step + 1):
        yield f"{total} tokens", fill(total, min(sequences[2], 8), middle, typical)
    for count in (4, 5):
        yield f"{count} texts", fill(count * middle, count, middle, [middle])
    for length in (LONGEST_STEP, LONGEST_STEP + 1):
        yield f"a text of {length} tokens", [length, *[1] * (sequences[0] - 1)]


def unsorted(lengths: Sequence[int]) -> list[int]:
    """Distinct lengths (four at least) in an order that neither ascending nor descending sort maps back if used twice.

    An engine that sorts a batch and mistakes the order for its inverse is right wherever the two are the same: in every
    batch that is sorted already, reversed, or has two texts exchanged.
    """
    ascending = sorted(lengths)
    return ascending[1::2] + ascending[::2]


def _order(trial: Trial) -> Iterator[Row]:
    model, texts = trial.model, trial.known
    lengths = [length for length in UNSORTED if length <= model.manifest.max_length and model.takes([length])]
    while lengths and not model.takes(lengths):
        lengths.pop()
    if len(lengths) < 4:  # then the engine has hardly an order to mix up
        return
    batch = texts.draw(unsorted(lengths))
    changes = [_change([got], texts.run([ids]), trial.bounds) for ids, got in zip(batch, texts.run(batch), strict=True)]
    case = f"{len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens, each as alone"
    yield _same("order of a batch", case, changes, "texts are answered otherwise than alone")


def _pair(trial: Trial) -> tuple[list[Ids], list[Ids]]:
    """Two batches of one shape without a common text: an engine may mix up what it keeps by shape."""
    model, texts = trial.model, trial.known
    lengths = [*(min(length, model.manifest.max_length) for length in texts.typical[:3]), 1, 2]
    while len(lengths) > 1 and not model.takes(lengths):
        lengths.pop()
    drawn = texts.draw([length for length in lengths for _ in range(2)])
    return drawn[::2], drawn[1::2]


def _repeated(trial: Trial) -> Iterator[Row]:
    texts = trial.known
    batches = dict(zip("AB", _pair(trial), strict=True))
    first: dict[str, list[FloatArray]] = {}
    changes: list[tuple[float, float]] = []
    for name in CALLS:
        answers = texts.run(batches[name])
        changes.append(_change(answers, first.setdefault(name, answers), trial.bounds))
    for name, batch in batches.items():
        yield texts.compare("repeated calls", f"batch {name}, the first answer", batch, first[name])
    yield _same("repeated calls", f"{len(CALLS)} calls, two batches of one shape in turn", changes)


def _concurrent(trial: Trial) -> Iterator[Row]:
    texts = trial.known
    first, second = _pair(trial)
    batches = [first, second, second[:1], first[::-1]][:THREADS]
    alone = [texts.run(batch) for batch in batches]
    changes = []
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(ROUNDS):
            calls = [pool.submit(texts.run, batch) for batch in batches]
            changes += [_change(call.result(), want, trial.bounds) for call, want in zip(calls, alone, strict=True)]
    yield _same("concurrent calls", f"{THREADS} threads, {ROUNDS} calls each", changes)


def _change(answers: Sequence[FloatArray], before: Sequence[FloatArray], bounds: Bounds) -> tuple[float, float]:
    """The largest difference relative to its bound, and that bound."""
    pairs = [
        (difference(got, want), scaled(bounds.invariance, want)) for got, want in zip(answers, before, strict=True)
    ]
    return max(pairs, key=lambda pair: pair[0] / pair[1])


def _same(
    check: str,
    case: str,
    changes: Sequence[tuple[float, float]],
    what: str = "calls answered otherwise than the first",
) -> Row:
    value, bound = max(changes, key=lambda pair: pair[0] / pair[1])
    wrong = sum(value > bound for value, bound in changes)
    note = f"{wrong} of {len(changes)} {what}" if wrong else ""
    return Row.at_most(check, case, value, bound, note)


CHECKS: dict[str, Check] = {
    "large batch": _large,
    "many short texts": _short,
    "profile edges": _edges,
    "order of a batch": _order,
    "repeated calls": _repeated,
    "concurrent calls": _concurrent,
    "full length": full_length,
}
