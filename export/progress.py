"""How a long export reports its progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the current step, and how much of it is done where that is known."""

    def __call__(self, message: str, done: int = 0, total: int | None = None) -> None:
        """Show a step; the same message again is progress within it."""
        ...


def silent(message: str, done: int = 0, total: int | None = None) -> None:
    """A `Progress` that shows nothing."""
