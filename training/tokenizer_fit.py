"""Whether a tokenizer was made for the language of the training texts, told before hours of training."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_ROWS, _CHARACTERS = 500, 1000  # looked at: rows, evenly spaced, and the beginning of each of their texts
_AT_ONCE = 50  # texts tokenized together: encodings of all would take more than the rest of a small run
# Measured in 90 languages (docs/multilingual.md): most of those in Latin letters stay below both, and those in scripts
# that the tokenizer was not made for exceed one of them.
_MOST_UNKNOWN, _MOST_TOKENS = 0.03, 0.45
_FEWEST_LETTERS = 20  # of fewer, as somebody's first rows may have, a share says nothing of a language
_BLANKS = {"▁", "Ġ"}  # a token of its own, where a tokenizer puts a blank before each text


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a tokenizer makes of texts."""

    unknown: float  # share of the letters that have no token: alone they become the unknown one, or parts of bytes
    examples: tuple[str, ...]  # the most frequent of those
    tokens: (
        float | None
    )  # for each letter or blank; None where most letters are whole syllables or words, as in Chinese


def remark_on_tokenizer(tokenizer: Any, rows: Any) -> str | None:
    """What a tokenizer (of transformers) makes of the rows to train on (a `datasets.Dataset`); None if it fits them."""
    texts = list(_texts(rows))
    if sum(_is_letter(letter) for text in texts for letter in text) < _FEWEST_LETTERS:
        return None
    fit = measure_fit(tokenizer, texts)
    if fit.unknown > _MOST_UNKNOWN:
        what = f"it has no token for {100 * fit.unknown:.0f} % of their letters ({', '.join(fit.examples)})"
    elif fit.tokens is not None and fit.tokens > _MOST_TOKENS:
        what = f"it makes {fit.tokens:.2f} tokens of a letter, where 0.2 to 0.4 are usual"
    else:
        return None
    return (
        f"the tokenizer does not seem made for the language of these texts: {what}. A model that was pre-trained with "
        "it hardly knows the language, and is slow on it; docs/multilingual.md says which others there are"
    )


def measure_fit(tokenizer: Any, texts: Sequence[str]) -> Fit:
    """Letters are those of Unicode's categories L and M; digits, signs and emoji count for nothing."""
    letters = Counter(letter for text in texts for letter in text if _is_letter(letter))
    unknown = sorted(_without_token(tokenizer, list(letters)), key=lambda letter: -letters[letter])
    plain = [" ".join("".join(each if _of_an_alphabet(each) else " " for each in text).split()) for text in texts]
    tokens = None
    if 2 * sum(len(text) - text.count(" ") for text in plain) > letters.total():
        parts = (plain[start : start + _AT_ONCE] for start in range(0, len(plain), _AT_ONCE))
        made = (tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"] for part in parts)
        tokens = sum(len(ids) for part in made for ids in part) / sum(map(len, plain))
    return Fit(
        unknown=sum(letters[letter] for letter in unknown) / max(1, letters.total()),
        examples=tuple(unknown[:5]),
        tokens=tokens,
    )


def _texts(rows: Any) -> Iterator[str]:
    """The texts of some rows, whichever columns they are in."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(_ROWS, len(rows)), dtype=np.int64))
    for row in rows.select(places):
        for value in row.values():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    yield text[:_CHARACTERS]


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"  # letters, and the marks that belong to them


def _of_an_alphabet(character: str) -> bool:
    """A letter of which words have several; not one that is a syllable or a word, as those of Chinese are."""
    return _is_letter(character) and unicodedata.east_asian_width(character) not in "WF"


def _without_token(tokenizer: Any, letters: list[str]) -> list[str]:
    if not letters:
        return []
    found = []
    for letter, ids in zip(letters, tokenizer(letters, add_special_tokens=False)["input_ids"], strict=True):
        tokens = [token for token in tokenizer.convert_ids_to_tokens(ids) if token not in _BLANKS]
        if len(tokens) > 1 or tokenizer.unk_token in tokens:
            found.append(letter)
    return found
