"""What a process of the server has open to be observed: its log, a port for scrapes, the last traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nopad.runtime.server.calls import Serving
from nopad.runtime.server.logs import logging_to_stderr
from nopad.runtime.server.scrapes import scrapes


@contextmanager
def observed(serving: Serving, host: str) -> Iterator[None]:
    """Within the `with`, the log goes where `serving`'s settings say, and `/metrics` answers on a port of its own.

    Raises `UsageError` where it cannot listen.
    """
    settings = serving.settings
    with ExitStack() as until_the_end:
        until_the_end.callback(serving.tracing.close)
        until_the_end.enter_context(
            logging_to_stderr(
                settings.log_format,
                settings.log_level,
                access=settings.access_log,
                on_error=serving.metrics.log_failed,
            )
        )
        if settings.metrics_port is not None:
            until_the_end.enter_context(scrapes(host, settings.metrics_port, serving, shared=settings.workers > 1))
        yield
