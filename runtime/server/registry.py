"""The served models by name: opened, found, replaced and removed. Which bundle may replace which is `swap.py`'s."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nopad.model.head import Task
from nopad.runtime.errors import UsageError
from nopad.runtime.model import Model
from nopad.runtime.predictor import load
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.memory import resident
from nopad.runtime.server.statistics import Statistics
from nopad.runtime.warmup import warm_up

EMBEDDED = "default"  # the name of the embedded model
LOOK_SECONDS, COLLECT_SECONDS = 0.02, 0.5  # while a replaced model is waited for
# For clients that were sent to the wrong model, in TEI's words where it has some.
WRONG_TASK: Mapping[Task, str] = {
    "text-classification": "Model is not a classifier model",
    "rerank": "model is not a re-ranker model",
    "embeddings": "Model is not an embedding model",
    "token-embeddings": "Model has no embedding of each token",
    "token-classification": "Model is not a token classification model",
    "fill-mask": "Model is not a fill-mask model",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """A model under its name."""

    name: str
    model: Model
    version: int = 1  # grows with each model that is served under this name
    created: int = field(default_factory=lambda: int(time.time()))  # when it was loaded, in seconds of Unix time
    statistics: Statistics = field(default_factory=Statistics)
    memory: int | None = None  # bytes by which the process grew when it was loaded and warmed; None: not known
    path: Path | None = None  # the bundle's folder; None: the embedded one

    @property
    def healthy(self) -> bool:
        """Whether the engine can be expected to answer."""
        return self.model.scheduler.state().ready

    @property
    def busy(self) -> float:
        """Seconds for which the micro-batch that runs has been running; 0 if none does."""
        since = self.model.scheduler.state().running_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return self.model.scheduler.state().requests

    def prompt(self, name: str | None) -> str:
        """The prompt before each text: the bundle's default without a name. Raises `UsageError`."""
        return resolve_prompt(self.model.manifest, name, None)


class Leaving:
    """A model that is served no more, and that requests may still hold."""

    def __init__(self, served: Served) -> None:
        # Every request holds its `Served` as long as it needs it, so it is over when nobody does.
        self._served = weakref.ref(served)
        self._model = served.model

    def close(self, seconds: float) -> bool:
        """Wait until no request holds the model, at most so many seconds, then release it. Whether all were answered.

        The caller must hold no reference to the `Served`.
        """
        ends = time.monotonic() + seconds
        collects = time.monotonic() + COLLECT_SECONDS
        while self._served() is not None and time.monotonic() < ends:
            time.sleep(LOOK_SECONDS)
            if time.monotonic() > collects:  # a request that failed may be held by its own traceback
                gc.collect()
                collects += COLLECT_SECONDS
        answered = self._served() is None
        self._model.close()
        return answered


class Models:
    """Served models by name, the first one first. Empty until they are loaded.

    Readers take no lock: the mapping is replaced, never changed. There is one writer at a time, `swap.py`.
    """

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        self._versions: dict[str, int] = {}  # the last version of each name that was ever served
        self._closed = False
        self._lock = threading.Lock()  # so that nothing is served that `close` has not seen
        self.loaded = False  # whether the models of the start have been opened
        self.paths: dict[str, Path | None] = {}  # the bundle that each name was last served from
        self.options: Mapping[str, Any] = {}  # `load`'s, for all models

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def open(
        self, bundles: Mapping[str, Path | None], *, stop: Callable[[], bool] = lambda: False, **options: Any
    ) -> None:
        """Load and warm all of them, or none; `options` are `load`'s. Raises its errors.

        `stop` ends a warm-up early. The option `observer` is told the name of a model and what its scheduler does.
        """
        self.options = options
        opened: dict[str, Served] = {}
        try:
            for name, path in bundles.items():
                opened[name] = prepare(name, path, options, stop=stop)
        except BaseException:
            for served in opened.values():
                served.model.close()
            raise
        self.paths = dict(bundles)
        self._versions = dict.fromkeys(opened, 1)
        self._served = opened
        self.loaded = True

    def close(self) -> None:
        """Release the engines, and take nothing new."""
        with self._lock:
            self._closed = True
        for served in self._served.values():
            served.model.close()

    def next_version(self, name: str) -> int:
        """The version that a model under this name would have."""
        return self._versions.get(name, 0) + 1

    def put(self, served: Served) -> Leaving | None:
        """Serve a model from now on; the one that it replaces. Raises `Fault` if all are closed already."""
        with self._lock:
            if self._closed:
                raise Fault("unavailable", "the server is shutting down; ask another one")
            old = self._served.get(served.name)
            self._versions[served.name] = served.version
            self.paths = {**self.paths, served.name: served.path}
            self._served = {**self._served, served.name: served}
        return None if old is None else Leaving(old)

    def remove(self, name: str) -> Leaving:
        """Serve a model no more. Raises `Fault` for a name that is not served."""
        old = self.get(name)
        if old is None:
            raise self.unknown(name)
        self._served = {other: served for other, served in self._served.items() if other != name}
        return Leaving(old)

    def get(self, name: str) -> Served | None:
        """The model of exactly that name."""
        return self._served.get(name)

    def unknown(self, name: str) -> Fault:
        """The fault of a name under which nothing is served."""
        known = ", ".join(self._served) or "none"
        return Fault("model", f"no model named {name!r} is served here; there are {known}", code="model_not_found")

    def find(self, name: str | None, *tasks: Task) -> Served:
        """The model of that name, else the first one for one of the tasks; without `tasks`, whatever its task is.

        Where one model is served, the name is not looked at, unless another model had it: clients of other servers name
        theirs.
        Raises `Fault`: an unknown name of several (`model`), a model for another task (`task`).
        """
        served_now = self._served
        if not served_now:
            raise Fault("unavailable", "no model is loaded" if self.loaded else "the model is still loading")
        named = served_now.get(name) if name is not None else None
        if named is None and name is not None and (len(served_now) > 1 or name in self._versions):
            raise self.unknown(name)
        choice = [named] if named else list(served_now.values())
        for served in choice:
            if not tasks or served.model.task in tasks:
                return served
        remedy = next(filter(None, (served.model.remedy(tasks[0]) for served in choice)), None)
        raise Fault("task", "; ".join(filter(None, (WRONG_TASK[tasks[0]], remedy))))


def prepare(
    name: str,
    path: Path | None,
    options: Mapping[str, Any],
    *,
    version: int = 1,
    stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda state: None,
) -> Served:
    """Load a model and warm it; nobody is served by it yet. Raises `load`'s errors, and `EngineError`.

    `tell` is called with the state that begins: loading, warming.
    """
    before = resident()
    tell("loading")
    statistics, observer = Statistics(), options.get("observer")
    told = statistics.observing(partial(observer, name) if observer else None)
    model = load(path, **{**options, "observer": told})
    try:
        tell("warming")
        warm_up(model, stop=stop)
    except BaseException:
        model.close()
        raise
    after = resident()
    memory = None if before is None or after is None else max(0, after - before)
    return Served(
        name=name,
        model=model,
        version=version,
        statistics=statistics,
        memory=memory,
        path=path,
    )


def bundles_by_name(paths: Sequence[str]) -> dict[str, Path | None]:
    """`NAME=FOLDER` or `FOLDER` -> folders by name, which is else the folder's own; none: the embedded model."""
    if not paths:
        return {EMBEDDED: None}
    found: dict[str, Path | None] = {}
    for given in paths:
        name, sign, folder = given.partition("=")
        if not sign or not folder or Path(given).is_dir():
            name, folder = Path(given).resolve().name, given
        if not name or name in found:
            raise UsageError(f"two models would be named {name!r}; name them yourself: NAME={folder}")
        found[name] = Path(folder)
    return found
