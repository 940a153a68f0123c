"""Whether each model answers: by a real forward through its queue, also while nobody asks for anything."""

from __future__ import annotations

import asyncio
import time
from weakref import WeakKeyDictionary

from nopad.runtime.errors import EngineError, NopadError, OverloadedError
from nopad.runtime.inference import PROBE
from nopad.runtime.model import Model
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.models import Models, Served
from nopad.runtime.types import Failure

FRESH_SECONDS = 2.0  # for which a forward stands, however many ask
MOST_SECONDS = 5.0  # for a forward of a model that does nothing else


class Forwards:
    """The last forwards of the models. For one event loop."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._ran: WeakKeyDictionary[Model, float] = WeakKeyDictionary()
        self._lock = asyncio.Lock()

    async def require(self) -> None:
        """Raises the `Fault` of a model that does not answer. A busy one is judged by its scheduler alone."""
        async with self._lock:
            for served in tuple(self._models):
                if time.monotonic() - self._ran.get(served.model, float("-inf")) > FRESH_SECONDS:
                    await self._run(served)

    async def _run(self, served: Served) -> None:
        state = served.model.scheduler.state()
        if state.running or state.requests:
            return
        try:
            (answer,) = (await served.model.aresults([PROBE], timeout=MOST_SECONDS)).answers
            if isinstance(answer, Failure) and isinstance(answer.error, EngineError):
                raise answer.error  # another error is of the text: a fill-mask model finds no mask in it
        except OverloadedError:  # others came first
            return
        except NopadError:
            raise Fault("unavailable", f"unhealthy: {served.name!r} does not answer") from None
        self._ran[served.model] = time.monotonic()
