"""Texts of any number, some at a time: enough to sort by length, few enough to fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
# Texts looked at together.
WINDOW = 512
WINDOW_CHARACTERS = 2_000_000  # fewer texts where they are long: the tokenizer needs 50 bytes a character


def windows(items: Iterable[T], text: Callable[[T], object]) -> Iterator[list[T]]:
    """`items` in lists of at most `WINDOW`, and of about `WINDOW_CHARACTERS` characters of what `text` says of each."""
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
