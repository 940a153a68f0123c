"""What a text is taken apart into: its tokens, words or sentences, with their places among tokens and characters.

Knows no method, no engine and no language: words are found by their characters.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nopad.runtime.errors import TextError
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import By

# A sign of a script without spaces; a word with its inner apostrophes, hyphens and decimal points; a tag; other marks.
_SIGN = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_LETTERS = rf"(?:(?!{_SIGN})\w)+"
_WORD = re.compile(rf"{_SIGN}|{_LETTERS}(?:(?:['’-]|(?<=\d)[.,](?=\d)){_LETTERS})*|</?[a-zA-Z][^<>]*>|[^\w\s]+")
_BLANKS = re.compile(r"\s*")
# To the end of the marks that end a sentence, and the quotes after them; or of a line.
_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|<|$)|[。！？]+[」』”]*|\n+|(?:<br\s*/?>\s*)+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is removed at once."""

    tokens: tuple[int, ...]  # places among the text's tokens
    start: int  # characters of the caller's text, without the prompt
    end: int
    part: int = 0  # 1: of the second text of a pair


def units_of(tokens: Tokens, by: By, prompt: str = "") -> tuple[Unit, ...]:
    """The units of a text in its order: every token that is neither special nor the prompt's is in exactly one.

    Tokens that share characters, as the bytes of one letter do, are one unit, and so are words that share a token.
    `prompt` is what `tokens` begin with. Raises `TextError` for a text without such tokens.
    """
    texts = tokens.text if isinstance(tokens.text, tuple) else (tokens.text,)
    found: list[Unit] = []
    for part, text in enumerate(texts):
        shift = 0 if part else len(prompt)
        starts = [0] if by == "token" else list(_starts(text, by))
        last = -1
        for place, start, end in _spans(tokens, part, text, shift):
            here = bisect_right(starts, start)
            own = found[-1] if found and found[-1].part == part else None
            if own and (start - shift < own.end or (by != "token" and here == last)):
                found[-1] = Unit(tokens=(*own.tokens, place), start=own.start, end=max(own.end, end - shift), part=part)
            else:
                found.append(Unit(tokens=(place,), start=max(0, start - shift), end=end - shift, part=part))
            last = bisect_right(starts, max(start, end - 1))
    if not found:
        raise TextError("the text has no token that could be removed: only special tokens or a prompt")
    return tuple(found)


def _starts(text: str, by: By) -> Iterator[int]:
    """Where words or sentences begin."""
    if by == "word":
        yield from (match.start() for match in _WORD.finditer(text))
        return
    yield 0
    for match in _SENTENCE.finditer(text):
        blanks = _BLANKS.match(text, match.end())
        assert blanks is not None  # it matches nothing, too
        yield blanks.end()


def _spans(tokens: Tokens, part: int, text: str, shift: int) -> Iterable[tuple[int, int, int]]:
    """Place, first and last character of each token of a part, without the blanks around it."""
    second = len(tokens.offsets) if tokens.second is None else tokens.second
    places = range(second, len(tokens.offsets)) if part else range(tokens.prompt_length, second)
    for place in places:
        start, end = tokens.offsets[place]
        if tokens.special[place] or end <= shift:
            continue
        while start < end - 1 and text[start].isspace():
            start += 1
        while end > start + 1 and text[end - 1].isspace():
            end -= 1
        yield place, start, end
