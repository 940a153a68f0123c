"""`nopad predict` as a process of its own."""

import sys
from pathlib import Path

NOPAD = [sys.executable, "-m", "nopad.runtime.cli"]


def command(bundle: Path, *arguments: object) -> list[str]:
    """Its command line."""
    return [*NOPAD, "predict", str(bundle), "--threads", "1", *map(str, arguments)]
