"""A server of `nopad serve` in a thread of this process. Helpers, no tests."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any


class Running:
    """A server in a thread of this process."""

    def __init__(self, bundles: dict[str, Path | None], **settings: Any) -> None:
        from nopad.runtime.server.calls import Serving
        from nopad.runtime.server.models import Models
        from nopad.runtime.server.run import Server, bind
        from nopad.runtime.server.settings import Settings

        self.models = Models()
        self.serving = Serving(Settings(**settings), self.models)
        self._listening = bind("127.0.0.1", 0)
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(self.serving, lambda: self.models.open(bundles, threads=1))
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
