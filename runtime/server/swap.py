"""Changing models while the server runs: load beside the old one, warm, check, shift, let the old one finish.

Whatever fails before the shift leaves the old model as it was. Knows no HTTP: `Swaps.swap` takes and returns plain
records, so that another process can ask for it, too.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nopad.model.head import BARE
from nopad.runtime.bundle import DEFAULT_BUNDLE, Bundle, open_bundle
from nopad.runtime.engines.base import named_engines
from nopad.runtime.errors import EngineError, EnvironmentProblem, NopadError
from nopad.runtime.manifest import Artifact
from nopad.runtime.selfcheck import SelfCheck, self_check
from nopad.runtime.server.errors import Fault
from nopad.runtime.server.memory import available, give_back
from nopad.runtime.server.registry import Leaving, Models, Served, prepare

log = logging.getLogger("nopad.server")
State = Literal["loading", "warming", "checking", "draining", "failed"]
MOST_OF_NAME = 128  # characters
UNKNOWN_FILES = 2  # without a loaded model to compare with, memory for so many times the size of the files


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a model is to be replaced with. None: as it was, or as the command says."""

    bundle: str | None = None  # a folder: inside one that the operator allows, or the one that the name has
    engine: str | None = None
    precision: str | None = None
    token_budget: int | None = None
    allow_change: bool = False  # of the task, the labels, what scores mean, or the size of embeddings


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A model that was replaced, loaded or removed."""

    name: str
    version: int | None  # that answers now; None: nothing is served under the name any more
    replaced: int | None  # the version that answered before
    bundle: str | None = None
    engine: str | None = None
    precision: str | None = None
    probes: int = 0  # of the self-check
    note: str = ""  # what the self-check found
    drained: bool = True  # False: requests of the old one were cut off when the time for them was over
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where the last change of a name stands, if it is not over and done."""

    state: State
    bundle: str | None
    since: int  # seconds of Unix time
    failed: str | None = None  # the step that failed: loading, warming, checking
    why: str | None = None  # it did


class Swaps:
    """Changes of the served models, one at a time.

    `folders`: bundles are loaded only from below these; without any, a name keeps its bundle, which can be loaded
    again. `max_memory`: bytes that the process may have. `drain_seconds`: time for the requests of a replaced model.
    `workers`: processes that share the server's port; more than one cannot be changed through it.
    `stop`: whether the server is ending. `observe` is called with the result of each change: done, failed or refused.
    """

    def __init__(
        self,
        models: Models,
        *,
        folders: Sequence[Path] = (),
        max_memory: int | None = None,
        drain_seconds: float = 30.0,
        workers: int = 1,
        stop: Callable[[], bool] = lambda: False,
        observe: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._models = models
        self._folders = [folder.resolve() for folder in folders]
        self._max_memory = max_memory
        self._drain_seconds = drain_seconds
        self._workers = workers
        self._stop = stop
        self._observe = observe
        self._one = threading.Lock()  # held by the change that runs
        self._running = ""  # its name
        self.progress: Mapping[str, Progress] = {}

    def swap(self, name: str, change: Change) -> Changed:
        """Serve another bundle (or the same one again) under a name. Returns once the old model is closed.

        Raises `Fault`: `conflict` (another change runs; another task or labels), `forbidden` (a folder that is not
        allowed), `validation` (the bundle), `memory`, `engine` (warm-up or self-check), `unavailable` (the end).
        """
        started = time.monotonic()
        with self._alone(name):
            folder: Path | None = None
            self._note(name, "loading", folder)
            try:
                folder = self._folder(name, change.bundle)
                self._note(name, "loading", folder)
                self._require_fit(name, folder, change)
                changed, leaving = self._shift(name, folder, change)
            except Exception as error:
                raise self._failed(name, folder, error) from error
            self._note(name, "draining", folder)
            drained = leaving is None or leaving.close(self._drain_seconds)
            self._over(name)
        return dataclasses.replace(changed, drained=drained, seconds=time.monotonic() - started)

    def unload(self, name: str) -> Changed:
        """Serve a model no more; what it has is answered. Raises `Fault`: `model`, `conflict`, `unavailable`."""
        started = time.monotonic()
        with self._alone(name):
            version = self._version(name)
            leaving = self._models.remove(name)
            self._note(name, "draining", None)
            drained = leaving.close(self._drain_seconds)
            self._over(name)
        seconds = time.monotonic() - started
        return Changed(name=name, version=None, replaced=version, drained=drained, seconds=seconds)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        if self._stop():
            raise Fault("unavailable", "the server is shutting down; ask another one")
        if not self._models.loaded:
            raise Fault("unavailable", "the server is still loading its models")
        if self._workers > 1:
            raise Fault(
                "conflict",
                f"{self._workers} worker processes share this port, and a change would reach one of them: put the new "
                "bundle in the place of the old one and restart the workers in turn, or serve with one",
            )
        if not self._one.acquire(blocking=False):
            self._observe("refused")
            raise Fault("conflict", f"{self._running!r} is being changed; one change at a time: try again later")
        self._running = name
        try:
            yield
        except Fault:
            self._observe("failed")
            raise
        else:
            self._observe("done")
        finally:
            give_back()
            self._one.release()

    def _folder(self, name: str, given: str | None) -> Path | None:
        paths = self._models.paths
        if given is None or (name in paths and given == str(paths[name])):
            if name in paths:
                return paths[name]
            given = name
        if not name.isprintable() or len(name) > MOST_OF_NAME:
            raise Fault("validation", f"a name has at most {MOST_OF_NAME} printable characters")
        inside = False
        for allowed in self._folders:
            try:
                path = (allowed / given).resolve()
                if not path.is_relative_to(allowed):
                    continue
                inside = True
                if path.is_dir():
                    return path
            except (OSError, ValueError):  # a name that no file can have
                continue
        if inside:
            raise Fault("validation", f"no bundle {given!r} below the folders of --model-dir")
        where = "it is in no folder of --model-dir" if self._folders else "the server was started without --model-dir"
        raise Fault("forbidden", f"the bundle {given!r} is not allowed: {where}")

    def _require_fit(self, name: str, folder: Path | None, change: Change) -> None:
        """Refuse, by what the manifests say, a bundle that answers other questions or has no room."""
        bundle, present = open_bundle(folder, verify=False), self._models.get(name)
        if present is not None and not change.allow_change:
            ours, theirs = _facts(present.model.bundle), _facts(bundle)
            other = [f"{fact} {ours.get(fact)!r}, now {now!r}" for fact, now in theirs.items() if ours.get(fact) != now]
            if other:
                raise Fault("conflict", f'it answers other questions ({"; ".join(other)}); meant? "allow_change": true')
        need, free = _estimate(present, bundle, change.precision), available(self._max_memory)
        if free is not None and need > free:
            raise Fault(
                "memory",
                f"beside the models that are served it takes about {need / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are "
                "free; unload a model first, or raise --max-memory",
            )

    def _shift(self, name: str, folder: Path | None, change: Change) -> tuple[Changed, Leaving | None]:
        """Make the new model ready and let it answer; the one that it replaces."""
        served, checked = self._ready(name, folder, change)
        changed = Changed(
            name=name,
            version=served.version,
            replaced=self._version(name),
            bundle=_shown(folder),
            engine=served.model.status().engine,
            precision=served.model.artifact.precision,
            probes=checked.probes,
            note=checked.note,
        )
        try:
            leaving = self._models.put(served)
        except Fault:
            served.model.close()
            raise
        log.info("%s: version %s answers, from %s; %s", name, served.version, changed.bundle, checked.note)
        return changed, leaving

    def _ready(self, name: str, folder: Path | None, change: Change) -> tuple[Served, SelfCheck]:
        """The new model, loaded, warmed and checked. Raises `Fault` where the server ends meanwhile."""
        wanted = dataclasses.asdict(change)
        given = {key: wanted[key] for key in ("engine", "precision", "token_budget") if wanted[key] is not None}
        if change.engine is not None:
            given["engine"] = named_engines(change.engine)
        served = prepare(
            name,
            folder,
            {**self._models.options, **given},
            version=self._models.next_version(name),
            stop=self._stop,
            tell=lambda state: self._note(name, state, folder),
        )
        try:
            self._note(name, "checking", folder)
            checked = self_check(served.model)
            if self._stop():
                raise Fault("unavailable", "the server is shutting down; the change was given up")
        except BaseException:
            served.model.close()
            raise
        return served, checked

    def _failed(self, name: str, folder: Path | None, error: Exception) -> Fault:
        """The fault of a change that did not come about, which `progress` shows until the next one."""
        state = self.progress[name].state
        why = str(error) if isinstance(error, NopadError | Fault) else type(error).__name__
        self._note(name, "failed", folder, failed=state, why=why)
        version = self._version(name)
        goes_on = "nothing is served under this name" if version is None else f"version {version} goes on answering"
        said = f"{name!r} was not changed, {state} failed: {why}; {goes_on}"
        log.warning("%s", said)
        if isinstance(error, Fault):
            return Fault(error.kind, said)
        engine = isinstance(error, EngineError | EnvironmentProblem)
        return Fault("engine" if engine else "validation" if isinstance(error, NopadError) else "internal", said)

    def _version(self, name: str) -> int | None:
        present = self._models.get(name)
        return present.version if present is not None else None

    def _note(self, name: str, state: Any, folder: Path | None, **reason: str) -> None:
        progress = Progress(state=state, bundle=_shown(folder), since=int(time.time()), **reason)
        self.progress = {**self.progress, name: progress}

    def _over(self, name: str) -> None:
        self.progress = {other: progress for other, progress in self.progress.items() if other != name}


def _shown(folder: Path | None) -> str:
    return str(folder or DEFAULT_BUNDLE)


def _facts(bundle: Bundle) -> dict[str, Any]:
    """What clients rely on."""
    manifest = bundle.manifest
    facts: dict[str, Any] = {
        "task": manifest.task,
        "labels": list(manifest.labels),
        "problem type": manifest.problem_type,
        "activation": manifest.activation,
    }
    if manifest.task in BARE:
        shape = next(iter(manifest.artifacts[0].outputs.values()))
        facts["embedding size"] = manifest.truncate_dim or shape[-1]
    return facts


def _estimate(present: Served | None, bundle: Bundle, precision: str | None) -> int:
    """Bytes that a bundle will take: what the present model took, and the difference of their files."""
    artifacts = bundle.manifest.artifacts
    suitable = [each for each in artifacts if each.precision == precision] or artifacts
    files = max(_bytes(bundle, artifact) for artifact in suitable)
    if present is None or present.memory is None:
        return UNKNOWN_FILES * files
    return max(files, present.memory + files - _bytes(present.model.bundle, present.model.artifact))


def _bytes(bundle: Bundle, artifact: Artifact) -> int:
    return sum(bundle.manifest.files[name].bytes for name in bundle.files_of(artifact))
