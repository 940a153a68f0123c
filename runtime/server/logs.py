"""The server's log: lines as text or JSON, written by a thread of its own, with no text of a request in them.

A destination that is full, closed or blocked costs lines, which are counted, and never a request. Of an exception the
log has the type and the frames: its message may quote a text.
"""

from __future__ import annotations

import datetime
import json
import logging
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, TextIO

from nopad.runtime.server.settings import LogFormat

ACCESS = "nopad.access"
FIELDS = "fields"  # of a record: what a JSON line has beside time, level, logger and message
MOST_WAITING = 10_000  # lines, while the destination is slow
CLOSE_SECONDS = 2.0


class LineHandler(logging.Handler):
    """Writes lines to `stream` from another thread. `on_error` is called for each line that is lost."""

    def __init__(self, stream: TextIO, on_error: Callable[[], None]) -> None:
        super().__init__()
        self._stream, self._on_error = stream, on_error
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name="nopad-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line."""
        try:
            self._lines.put_nowait(self.format(record) + "\n")
        except Exception:  # too many wait, or a record that cannot be formatted
            self._on_error()

    def close(self) -> None:
        """Write what waits, for `CLOSE_SECONDS` at most."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):  # full, or closed
                self._on_error()


class _Formatter(logging.Formatter):
    """The base of both: times in UTC, and exceptions without their messages."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def formatException(self, ei: Any) -> str:
        kind: type[BaseException] | None
        frames: TracebackType | None
        kind, _, frames = ei
        return f"{kind.__name__ if kind else 'no exception'}\n{''.join(traceback.format_tb(frames))}".rstrip()


class TextFormatter(_Formatter):
    """`TIME LEVEL logger: message key=value ...`, and the frames of an exception on lines of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as text."""
        more = "".join(f" {name}={value}" for name, value in getattr(record, FIELDS, {}).items())
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}{more}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, message, the record's fields, and an exception's frames."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as JSON."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


@contextmanager
def logging_to_stderr(
    format: LogFormat = "text",
    level: str = "warning",
    *,
    access: bool = False,
    on_error: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Within the `with`, stderr gets what nopad logs from `level` on, and warnings of its libraries.

    `access`: a line for each request, whatever the level. `on_error` is called for each line that is lost.
    """
    handler = LineHandler(sys.stderr, on_error)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    loggers: dict[logging.Logger, int | str] = {root: logging.WARNING, logging.getLogger("nopad"): level.upper()}
    if access:
        loggers[logging.getLogger(ACCESS)] = logging.INFO
    before = {logger: logger.level for logger in loggers}
    for logger, least in loggers.items():
        logger.setLevel(least)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        for logger, least in before.items():
            logger.setLevel(least)
