"""Fixtures for tests of `nopad predict`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nopad.runtime.cli import run


@pytest.fixture
def predict(
    bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[dict[str, Any]], str]]:
    """Run `nopad predict` in this process: exit code, the printed rows, stderr."""

    def call(*arguments: object, name: str = "modernbert-single-mean") -> tuple[int, list[dict[str, Any]], str]:
        folder = bundle(name)
        capsys.readouterr()  # of its export
        code = run(["predict", str(folder), "--json", "--threads", "1", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return call
