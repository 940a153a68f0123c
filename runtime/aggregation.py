"""Entities as transformers' `TokenClassificationPipeline` makes them, by its `aggregation_strategy`.

"none" gives each token; "simple" joins tokens of a kind; "first", "average" and "max" first give all tokens of a word
one label: its first token's, that of the mean probabilities, or that of the surest token. The same words, positions
and scores as of that pipeline (transformers 4 and 5), which reads `B-` and `I-` only; nopad's own grouping, which reads
more schemes, is in `nopad.runtime.entities`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nopad.runtime.tokenizer import Tokens, Words
from nopad.runtime.types import Entity, FloatArray, Strategy

Spell = Callable[[Sequence[str]], str]  # tokens -> the text that they spell


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """A token, or a word of several."""

    label: str
    score: np.float32
    word: str
    start: int
    end: int
    index: int | None = None


def aggregate(
    tokens: Tokens, scores: FloatArray, labels: Sequence[str], strategy: Strategy, words: Words, spell: Spell
) -> list[Entity]:
    """Entities of one text, those outside (`O`) included; `scores` are probabilities [tokens, labels]."""
    text = str(tokens.text)
    kept = [i for i, special in enumerate(tokens.special) if not special]
    spelled = {
        i: _reference(tokens, i, text) if tokens.input_ids[i] == words.unknown else tokens.pieces[i] for i in kept
    }

    def unit(members: list[int], chosen: FloatArray, word: str) -> _Unit:
        best = int(chosen.argmax())
        start, end = tokens.offsets[members[0]][0], tokens.offsets[members[-1]][1]
        return _Unit(label=labels[best], score=chosen[best], word=word, start=start, end=end, index=members[0])

    if strategy in ("none", "simple"):
        units = [unit([i], scores[i], spelled[i]) for i in kept]
    else:
        units = [
            unit(members, _word_scores(scores[members], strategy), spell([spelled[i] for i in members]))
            for members in _words(tokens, kept, text, words)
        ]
    if strategy != "none":
        return [_joined(group, text, spell) for group in _groups(units)]
    return [
        Entity(
            label=each.label,
            score=float(each.score),
            start=each.start,
            end=each.end,
            text=text[each.start : each.end],
            word=each.word,
            index=each.index,
        )
        for each in units
    ]


def _reference(tokens: Tokens, place: int, text: str) -> str:
    start, end = tokens.offsets[place]
    return text[start:end]


def _words(tokens: Tokens, kept: Sequence[int], text: str, words: Words) -> list[list[int]]:
    """Tokens word by word: `gather_pre_entities` (`is_subword`) and `aggregate_words` of the pipeline."""
    found: list[list[int]] = []
    for i in kept:
        start, piece = tokens.offsets[i][0], tokens.pieces[i]
        if tokens.input_ids[i] == words.unknown:
            inside = False
        elif words.marked:
            inside = len(piece) != len(_reference(tokens, i, text))
        else:
            inside = start > 0 and " " not in text[start - 1 : start + 1]
        if found and inside:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def _word_scores(scores: FloatArray, strategy: Strategy) -> FloatArray:
    """The probabilities of a word [labels] from those of its tokens [tokens, labels]."""
    if strategy == "average":
        mean: FloatArray = scores.mean(axis=0)
        return mean
    row: FloatArray = scores[0 if strategy == "first" else int(scores.max(axis=1).argmax())]
    return row


def _groups(units: Sequence[_Unit]) -> list[list[_Unit]]:
    """Neighbours of the same kind, unless the later one begins an entity: `group_entities` of the pipeline."""
    found = [[unit] for unit in units[:1]]
    for last, unit in pairwise(units):
        if _kind(unit.label) == _kind(last.label) and not unit.label.startswith("B-"):
            found[-1].append(unit)
        else:
            found.append([unit])
    return found


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _joined(group: Sequence[_Unit], text: str, spell: Spell) -> Entity:
    first, last = group[0], group[-1]
    return Entity(
        label=first.label.split("-", 1)[-1],
        score=float(np.mean([unit.score for unit in group], dtype=np.float32)),
        start=first.start,
        end=last.end,
        text=text[first.start : last.end],
        word=spell([unit.word for unit in group]),
    )
