"""Servers on the loopback, as `nopad serve` runs them, for the tests of the routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import Running


@pytest.fixture(scope="session")
def serve(bundle: Callable[[str], Path]) -> Iterator[Callable[..., Running]]:
    """A running server of these bundles ("default" is the embedded one) and `Settings`; equal ones are shared."""
    running: dict[Any, Running] = {}

    def start(*names: str, **settings: Any) -> Running:
        key = (names, tuple(settings.items()))
        if key not in running:
            folders = {name: None if name == "default" else bundle(name) for name in names}
            running[key] = Running(folders, **settings).start()
        return running[key]

    yield start
    for each in running.values():
        each.stop()
