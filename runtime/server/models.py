"""The served models, and every call into them.

The one file of the server that knows how a `Model` is asked.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nopad.model.head import Task
from nopad.runtime.batching import characters
from nopad.runtime.errors import TooLongError, UsageError
from nopad.runtime.model import Model
from nopad.runtime.predictor import load
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.scheduler.events import Event
from nopad.runtime.server.errors import Fault, fault_of
from nopad.runtime.server.statistics import Statistics
from nopad.runtime.tokenizer import TextEncoder, open_bundle_encoder
from nopad.runtime.types import Failure, Merge, Text, Truncation

EMBEDDED = "default"  # the name of the embedded model
WHOLE = 2**31 - 1  # a max length that no text reaches
# For clients that were sent to the wrong model, in TEI's words where it has some.
WRONG_TASK: Mapping[Task, str] = {
    "text-classification": "Model is not a classifier model",
    "rerank": "model is not a re-ranker model",
    "embeddings": "Model is not an embedding model",
    "token-classification": "Model is not a token classification model",
    "fill-mask": "Model is not a fill-mask model",
}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model under its name."""

    name: str
    model: Model
    encoder: TextEncoder  # for whole texts: /tokenize and /decode cut nothing
    statistics: Statistics = field(default_factory=Statistics)
    created: int = field(default_factory=lambda: int(time.time()))  # when it was loaded, in seconds of Unix time

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


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a request wants its texts read."""

    truncate: bool = True  # False refuses a text that is too long, unless `truncation` says what becomes of it
    direction: str | None = None  # "left" or "right", in any case: the end that may be cut; None: the model's own
    prompt_name: str | None = None
    truncation: Truncation | None = None
    stride: int | None = None  # of windows, as `merge`
    merge: Merge | None = None

    def options(self) -> dict[str, Any]:
        """The same for `Model.aresults`."""
        truncation = self.truncation or (None if self.truncate else "error")
        return {
            "prompt_name": self.prompt_name,
            "truncation": truncation,
            "truncation_side": self.direction.lower() if self.direction and truncation in (None, "truncate") else None,
            "stride": self.stride,
            "merge": self.merge,
        }


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers to one request, and what its headers say."""

    served: Served
    answers: list[Any]  # of the task's type
    characters: int
    started: float  # by the monotonic clock
    seconds: float
    # Of these, for the mean text: tokenizing, in the queue, in the engine.
    tokenizing: float
    queued: float
    running: float
    batch_tokens: int  # of the largest micro-batch that one of them ran in

    @property
    def tokens(self) -> int:
        """Tokens that reached the model, special tokens included."""
        return sum(answer.tokens_used for answer in self.answers)

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return sum(answer.truncated for answer in self.answers)


class Models:
    """Served models by name, the first one first. Empty until they are loaded."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def open(
        self,
        bundles: Mapping[str, Path | None],
        *,
        observer: Callable[[str, Event], None] | None = None,
        **options: Any,
    ) -> None:
        """Load all of them, or none; `options` are `load`'s. Raises its errors.

        `observer` is told the name of the model and what its scheduler does.
        """
        opened: dict[str, Served] = {}
        try:
            for name, path in bundles.items():
                statistics = Statistics()
                told = statistics.observing(partial(observer, name) if observer else None)
                opened[name] = _served(name, load(path, observer=told, **options), statistics)
        except BaseException:
            for served in opened.values():
                served.model.close()
            raise
        self._served = opened

    def close(self) -> None:
        """Release the engines."""
        for served in self._served.values():
            served.model.close()

    def find(self, name: str | None, *tasks: Task) -> Served:
        """The model of that name, else the first one for one of the tasks; without `tasks`, whatever its task is.

        Where one model is served, the name is not looked at: clients of other servers name theirs.
        Raises `Fault`: an unknown name of several (`model`), a model for another task (`task`).
        """
        if not self._served:
            raise Fault("unavailable", "the model is still loading")
        named = self._served.get(name) if name is not None else None
        if named is None and name is not None and len(self._served) > 1:
            known = ", ".join(self._served)
            raise Fault("model", f"no model named {name!r} is served here; there are {known}", code="model_not_found")
        choice = [named] if named else list(self._served.values())
        for served in choice:
            if not tasks or served.model.task in tasks:
                return served
        raise Fault("task", WRONG_TASK[tasks[0]])


def _served(name: str, model: Model, statistics: Statistics) -> Served:
    whole = dataclasses.replace(model.bundle, manifest=dataclasses.replace(model.manifest, max_length=WHOLE))
    return Served(name=name, model=model, encoder=open_bundle_encoder(whole), statistics=statistics)


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


async def answer(
    served: Served,
    texts: Sequence[Text],
    *,
    batch: bool,
    reading: Reading,
    logits: bool = False,
    top_k: int | None = None,
    timeout: float | None = None,
    **wanted: Any,
) -> Answered:
    """Every text's answer, in order, or a `Fault`: a request is answered whole or not at all. The model counts it.

    `batch`: faults name the text that is to blame. `logits`: the answers of a classifier or reranker carry them.
    `top_k`: of a fill-mask model, candidates for each mask. `timeout`: seconds until the fault `deadline`.
    `wanted`: what else `Model.aresults` takes.
    """
    for index, text in enumerate(texts):
        if "" in (text if isinstance(text, tuple) else (text,)):
            raise Fault("empty", "Input validation error: `inputs` cannot be empty", index=index if batch else None)
    started = time.monotonic()
    try:
        got = await served.model.aresults(
            texts, top_k=top_k, return_logits=logits, timeout=timeout, all_or_none=True, **reading.options(), **wanted
        )
        seconds = time.monotonic() - started
        for one in got.answers:
            if isinstance(one, Failure):
                raise _fault_of_text(one.error, one.index if batch else None, served.model.manifest.max_length)
    except Exception:
        served.statistics.failed(time.monotonic() - started)
        raise
    served.statistics.answered(len(texts), seconds, tokenizing=got.tokenizing, queued=got.queued, running=got.running)
    return Answered(
        served=served,
        answers=got.answers,
        characters=sum(map(characters, texts)),
        started=started,
        seconds=seconds,
        tokenizing=got.tokenizing,
        queued=got.queued,
        running=got.running,
        batch_tokens=got.batch_tokens,
    )


def _fault_of_text(error: Exception, index: int | None, limit: int) -> Fault:
    if not isinstance(error, TooLongError):
        return fault_of(error, index)
    said = f"Input validation error: `inputs` must have less than {limit + 1} tokens. Given: {error.tokens}"
    return Fault("validation", said, index=index)
