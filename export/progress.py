"""How a long export says what it is doing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told what is being done, and how much of it where that is known."""

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        """Show it; the same message again means more of the same."""
        ...


def silent(message: str, done: int = 0, total: int | None = None) -> None:
    """The `Progress` of those who do not look."""
