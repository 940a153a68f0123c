"""The process of one step: a command of nopad that ends when the run that started it has gone, even by SIGKILL.

`python -m nopad.pipeline.child LINE COMMAND ...`: LINE is the descriptor of a pipe that the run holds open.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from nopad.runtime.cli import main


def _end_with(line: int) -> None:
    os.read(line, 1)  # nothing is ever sent: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), name="nopad-line", daemon=True).start()
    sys.argv = ["nopad", *sys.argv[2:]]  # as commands report it
    main()
