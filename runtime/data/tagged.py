"""Texts whose words have tags, or that have marked entities, as data files hold them. Pure functions, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nopad.runtime.data.labels import label_finder, listed
from nopad.runtime.entities import read_tags, spans

WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags", "labels", "chunk_tags", "pos_tags")
SPAN_COLUMNS = ("entities", "spans", "label")  # of texts: the marked entities
# An entity in a text: its kind, its first character, and the one after its last.
EntityPlace = tuple[str, int, int]


def joined_words(words: Any) -> tuple[str, list[tuple[int, int]]]:
    """Words with one blank between them, which is the text that serving would get, and start and end of each in it.

    Raises `ValueError` for what is no list of texts.
    """
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ValueError("the words are not a list of texts")
    at, places = 0, []
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), places


def check_tags(words: Sequence[Any], tags: Any) -> None:
    """Raises `ValueError` unless each word has a tag."""
    if not isinstance(tags, list) or len(tags) != len(words):
        count = len(tags) if isinstance(tags, list) else "no"
        raise ValueError(f"{len(words)} words, but {count} tags; each word needs one")


def marked_spans(text: str, marked: Any) -> list[tuple[int, int, str]]:
    """Marked entities, {"start": 0, "end": 4, "label": "PER"} or [0, 4, "PER"], in order of their characters.

    Raises `ValueError` for what is none, overlaps another, or is not in the text.
    """
    if marked is not None and not isinstance(marked, list):
        raise ValueError(f"{marked!r:.80} is not a list of entities; expected start, end and label of each")
    found = sorted(map(_span, marked or []))
    at = 0
    for start, end, _ in found:
        if not at <= start <= end <= len(text):
            raise ValueError(f"an entity from {start} to {end} overlaps another, or is not in the text")
        at = end
    return found


def _span(entity: Any) -> tuple[int, int, str]:
    try:
        start, end, label = (
            [entity[key] for key in ("start", "end", "label")] if isinstance(entity, Mapping) else entity
        )
        return int(start), int(end), str(label)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{entity!r:.80} is not an entity; expected start, end and label") from None


def tagged_entities(
    words: Sequence[tuple[int, int]], tags: Sequence[Any], labels: tuple[str, ...]
) -> frozenset[EntityPlace]:
    """The entities that the tags of words make, under the scheme of a model's `labels`.

    `words`: start and end of each in the text. Raises `ValueError` for a tag that is none of the labels.
    """
    check_tags(words, tags)
    find = label_finder(labels)
    indices = []
    for tag in tags:
        if (index := find(tag)) is None:
            raise ValueError(f"tag {tag!r} is not among {listed(labels)}")
        indices.append(index)
    meaning = read_tags(labels)
    found = spans([meaning[index] for index in indices])
    return frozenset((kind, words[first][0], words[last][1]) for kind, first, last in found)


def marked_entities(text: str, marked: Any, labels: tuple[str, ...]) -> frozenset[EntityPlace]:
    """The entities that are marked in a text. Raises `ValueError` for a kind that a model's `labels` do not have."""
    kinds = list(dict.fromkeys(tag.kind for tag in read_tags(labels) if tag is not None))
    found = marked_spans(text, marked)
    unknown = next((kind for _, _, kind in found if kind not in kinds), None)
    if unknown is not None:
        raise ValueError(f"entity {unknown!r} is not among {listed(kinds)}")
    return frozenset((kind, start, end) for start, end, kind in found)
