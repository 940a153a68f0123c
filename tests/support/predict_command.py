"""`nopad predict` as a process of its own."""

import sys
from pathlib import Path

NOPAD = [sys.executable, "-m", "nopad.runtime.cli"]


def command(bundle: Path, *arguments: object) -> list[str]:
    """The command line of `nopad predict`."""
    return [*NOPAD, "predict", str(bundle), "--threads", "1", *map(str, arguments)]
