"""Labels of tokens -> entities, under the tag schemes that taggers are trained with.

The scheme is recognised from the label names: BIO in both forms (IOB1, IOB2), BIOES and its variants (BILOU, BMES,
BMEWO), or labels without tags. BIO groups are those of transformers' pipeline with `aggregation_strategy="simple"`,
which reads `B-` and `I-` only; the other schemes are read by their own rules (L. Ratinov and D. Roth, "Design
Challenges and Misconceptions in Named Entity Recognition", CoNLL 2009).

Labels are read token by token, as in that pipeline: the later pieces of a word do not inherit its first label. So
`B-PER B-PER` on two pieces of a word are two entities, `B-PER I-PER` are a single entity.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from nopad.runtime.types import Entity

# B begins an entity, I is inside, E ends it, S is a whole entity; other schemes use the other letters for the same.
_TAGS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_TAGGED = re.compile(r"([BIMELSUW])([^0-9A-Za-z])(.+)", re.IGNORECASE | re.DOTALL)
_OUTSIDE = "O"


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One label: the kind of entity, and the token's place in it (B, I, E or S; "" for a label without a tag)."""

    kind: str
    place: str


@lru_cache(maxsize=64)
def read_tags(labels: tuple[str, ...]) -> tuple[Tag | None, ...]:
    """The meaning of each label of a model; None for tokens outside any entity.

    `B-` and `I-` are always tags, as in transformers. Another letter, another separator (`B_PER`) or a lower-case
    letter is a tag only where some kind of entity has several tags, this letter among them: `E-MAIL` beside `PHONE`
    is a name, `U-LOC` beside `B-PER I-PER L-PER U-PER` is a tag. `O` is outside; if there are tags, so are `o` and `0`.
    """
    parts = [_TAGGED.fullmatch(label) for label in labels]
    places: dict[tuple[str, str], set[str]] = {}
    for part in parts:
        if part:
            places.setdefault((part[2], part[3]), set()).add(_TAGS[part[1].upper()])
    used = {(part[1], part[2]) for part in parts if part and len(places[part[2], part[3]]) > 1}
    tags: list[Tag | None] = []
    for label, part in zip(labels, parts, strict=True):
        plain = label.startswith(("B-", "I-")) and len(label) > 2
        if part and (plain or (part[1], part[2]) in used):
            tags.append(Tag(kind=part[3], place=_TAGS[part[1].upper()]))
        else:
            tags.append(None if label == _OUTSIDE else Tag(kind=label, place=""))
    if any(tag is not None and tag.place for tag in tags):
        tags = [None if label in ("o", "0") else tag for label, tag in zip(labels, tags, strict=True)]
    return tuple(tags)


@dataclass(kw_only=True)
class _Run:
    """The tokens of one entity, collected as they are read."""

    kind: str
    members: list[int] = field(default_factory=list)
    ended: bool = False  # by E or S


def _runs(tags: Sequence[Tag | None]) -> list[_Run]:
    """Tokens of each entity. A stray I or E begins an entity; E and S end theirs."""
    runs: list[_Run] = []
    for i, tag in enumerate(tags):
        if tag is None:
            continue
        last = runs[-1] if runs else None
        continues = last is not None and last.members[-1] == i - 1 and last.kind == tag.kind and not last.ended
        if last is None or not continues or tag.place in ("B", "S"):
            last = _Run(kind=tag.kind)
            runs.append(last)
        last.members.append(i)
        last.ended = tag.place in ("E", "S")
    return runs


def spans(tags: Sequence[Tag | None]) -> list[tuple[str, int, int]]:
    """The entities among tags: the kind of each, its first and its last tag."""
    return [(run.kind, run.members[0], run.members[-1]) for run in _runs(tags)]


def entity_scores(found: Iterable[Collection[Any]], true: Iterable[Collection[Any]]) -> dict[str, float]:
    """`f1`, `precision` and `recall` of the entities of texts, over all texts together; `found` and `true` of each.

    An entity is right if its kind, its beginning and its end are (E. F. Tjong Kim Sang and S. Buchholz, "Introduction
    to the CoNLL-2000 Shared Task: Chunking", 2000). Values that are equal where entities are will do.
    """
    right = found_count = true_count = 0
    for guess, truth in zip(found, true, strict=True):
        right += len(set(guess) & set(truth))
        found_count, true_count = found_count + len(guess), true_count + len(truth)
    return {
        "f1": 2 * right / max(found_count + true_count, 1),
        "precision": right / max(found_count, 1),
        "recall": right / max(true_count, 1),
    }


def entities(
    tags: Sequence[Tag | None], scores: Sequence[float], offsets: Sequence[tuple[int, int]], text: str
) -> tuple[Entity, ...]:
    """Entities of a text, in order and without overlap; `offsets` are the character positions of each token.

    White space at the ends is left out (byte-level tokens begin with their space). Characters that several tokens share
    belong to the entity that comes first; an entity with no character of its own is left out.
    """
    answer: list[Entity] = []
    end = 0
    for run in _runs(tags):
        start = max(end, min(offsets[i][0] for i in run.members))
        stop = max(offsets[i][1] for i in run.members)
        if start >= stop:
            continue
        end = stop
        piece = text[start:stop]
        if piece.strip():
            start += len(piece) - len(piece.lstrip())
            stop -= len(piece) - len(piece.rstrip())
        score = float(np.mean([scores[i] for i in run.members], dtype=np.float32))  # as every score: fp32
        answer.append(Entity(label=run.kind, score=score, start=start, end=stop, text=text[start:stop]))
    return tuple(answer)
