"""Running a command of nopad as a process of its own: its memory ends with it, and its exit code is its own.

Knows commands, logs and signals, not recipes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nopad.runtime.errors import Terminated


def run_command(
    arguments: Sequence[str], *, folder: Path, log: Path, results: Path, lock: int, show: Callable[[str], object]
) -> int:
    """Run `nopad ARGUMENTS` in `folder`; stdout goes to `results`, stderr to `log` and line by line to `show`.

    Returns the exit code, negative for a signal. The process has a session of its own, so Ctrl-C reaches it through
    us alone: it is passed on, as SIGTERM is, and raised again when the process has ended; a second one kills it. It
    holds `lock` (a locked descriptor) too, until its end.
    """
    ours, theirs = os.pipe()
    try:
        # -P: packages are not looked for in `folder`.
        command = [sys.executable, "-P", "-m", "nopad.pipeline.child", str(ours), *arguments]
        with results.open("wb") as out, log.open("w", encoding="utf-8", errors="backslashreplace") as file:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                pass_fds=(ours, lock),
                start_new_session=True,
                encoding="utf-8",
                errors="backslashreplace",
            )

            def say(line: str) -> None:
                file.write(line)
                file.flush()
                show(line.rstrip())

            try:
                return _wait(process, say)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                if process.stderr is not None:
                    process.stderr.close()
    finally:
        os.close(ours)
        os.close(theirs)


def _wait(process: subprocess.Popen[str], say: Callable[[str], object]) -> int:
    assert process.stderr is not None
    try:
        for line in process.stderr:
            say(line)
        return process.wait()
    except KeyboardInterrupt as stop:
        process.send_signal(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        for line in process.stderr:
            say(line)
        process.wait()
        raise
