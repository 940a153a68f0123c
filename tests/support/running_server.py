"""A server of `nopad serve` in a thread of this process. Helpers, no tests."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any


class Running:
    """A server in a thread of this process."""

    def __init__(self, bundles: dict[str, Path | None], options: dict[str, Any] | None = None, **settings: Any) -> None:
        """`options`: of `load`."""
        from nopad.runtime.server.calls import Serving
        from nopad.runtime.server.listen import bind
        from nopad.runtime.server.models import Models
        from nopad.runtime.server.run import Server
        from nopad.runtime.server.settings import Settings

        self.models = Models()
        self.serving = Serving(Settings(**settings), self.models)
        self._listening = bind("127.0.0.1", 0)
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(self.serving, lambda: self.serving.open(bundles, threads=1, **options or {}))
        self.thread = threading.Thread(target=self.server.run_until_stopped, args=(self._listening,))

    def start(self) -> Running:
        self.thread.start()
        end = time.monotonic() + 60
        while not self.serving.ready:
            assert self.thread.is_alive() and time.monotonic() < end
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.drain()
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.models.close()
        self._listening.close()


def answers_with(model: Any, answers: list[Any], monkeypatch: Any) -> None:
    """The model gives these answers, whatever it is asked."""
    from nopad.runtime.answering import Answered

    async def given(*texts: Any, **options: Any) -> Any:
        return Answered(answers=answers, tokenizing=0.0, queued=0.0, running=0.0)

    monkeypatch.setattr(model, "aresults", given)


def held(model: Any, until: threading.Event, monkeypatch: Any) -> None:
    """The engine waits for the event before each micro-batch."""
    real = model._inference.chain.run
    monkeypatch.setattr(model._inference.chain, "run", lambda batch: until.wait(60) and real(batch))


def slow(model: Any, seconds: float, monkeypatch: Any) -> None:
    """The engine takes so much longer for each micro-batch."""
    real = model._inference.chain.run
    monkeypatch.setattr(model._inference.chain, "run", lambda batch: time.sleep(seconds) or real(batch))
