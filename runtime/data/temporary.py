"""Where temporary files go, and what is said where there is no room for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nopad.runtime.errors import EnvironmentProblem


def temporary_folder() -> str:
    """Where temporary files go: `TMPDIR`, else `/var/tmp`, since `/tmp` is memory on many systems."""
    usual = Path("/var/tmp")
    return tempfile.gettempdir() if os.environ.get("TMPDIR") or not os.access(usual, os.W_OK) else str(usual)


@contextmanager
def room_for_rows() -> Iterator[None]:
    """Turn the errors of writing temporary files into `EnvironmentProblem`."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot keep the rows in {temporary_folder()} ({error.strerror or error}); free some space there, or name "
            "another folder in the environment variable TMPDIR"
        ) from error
