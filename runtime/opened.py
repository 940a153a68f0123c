"""`OpenedBundle`: what an opened bundle is, how it is closed and asked, and its raw logits; knows no answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

from nopad.model.head import BARE
from nopad.runtime.answering import Answering, Asking
from nopad.runtime.engines.chain import ChainStatus
from nopad.runtime.errors import TextError
from nopad.runtime.inference import TRUNCATED, Decoder, Inference
from nopad.runtime.long_texts import check_merge
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.scheduler.events import Observer
from nopad.runtime.scheduler.queue import Limits
from nopad.runtime.scheduler.request import Priority
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import Failure, FloatArray, LongTexts, Merge, Side, Text, Truncation

R = TypeVar("R")


class CallOptions(TypedDict, total=False):
    """Keyword arguments of every method of `Model` that answers."""

    timeout: float | None
    priority: Priority
    truncation: Truncation | None
    truncation_side: Side | None
    stride: int | None
    merge: Merge | None


# What a call may say about long texts, by the names of `LongTexts`.
_LONG = {"truncation": "truncation", "truncation_side": "side", "stride": "stride", "merge": "merge"}


class OpenedBundle:
    """A bundle with its engines and its scheduler. A context manager."""

    def __init__(
        self,
        inference: Inference,
        *,
        prompt: str = "",
        long_texts: LongTexts = TRUNCATED,
        limits: Limits | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.bundle = inference.bundle
        self.manifest = inference.manifest
        self.artifact = inference.artifact
        self.token_multiple = inference.token_multiple
        self.encoder = inference.encoder  # for a server, which also answers what tokens a text has
        self._inference = inference
        self._answering = Answering(inference, limits, observer)
        self.scheduler = self._answering.scheduler  # for a server: its state, and `drain`
        self._prompt = prompt
        self._long_texts = long_texts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the engines; whoever still waits gets a `UsageError`. The model cannot be used afterwards."""
        self._answering.close()

    def status(self) -> ChainStatus:
        """Which engine was chosen, whether the model is degraded, and the state of each engine."""
        return self._inference.chain.status()

    @property
    def task(self) -> str:
        """What the bundle does: one of `nopad.model.head.TASKS`."""
        return self.manifest.task

    def remedy(self, wanted: str) -> str:
        """As the function `remedy`, for this bundle."""
        return remedy(self.task, wanted)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the logits."""
        return self.manifest.labels

    @property
    def profiles(self) -> tuple[ShapeProfile, ...]:
        """The shapes that the chosen engine accepts; () for any."""
        return self._inference.planner.profiles

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch: `load`'s `token_budget`, else what suits the chosen engine."""
        return self._inference.planner.token_budget

    @property
    def threads(self) -> int | None:
        """CPU threads that the chosen engine's library reports now; None if it reports none."""
        return self._inference.chain.threads

    def takes(self, lengths: Sequence[int]) -> bool:
        """Whether the chosen engine can run texts with these token lengths in one micro-batch."""
        return self._inference.planner.takes(lengths)

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Micro-batches for the chosen engine: indices into `lengths`, each once, longest first."""
        return self._inference.planner.plan(lengths)

    def logits(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Raw logits of each text: [num_labels], or [tokens_used, ...] for per-token tasks. For the parity gate.

        Run in the caller's thread, past the scheduler: an engine's failure on a micro-batch is not mended. No windows:
        a text that `load` has read in windows is cut.
        """
        return list(self.iter_logits(texts))

    def iter_logits(self, texts: Iterable[Text]) -> Iterator[FloatArray]:
        """Like `logits`, lazily."""
        own: Decoder[FloatArray] = lambda logits, tokens, by: logits  # noqa: E731
        long = TRUNCATED if self._long_texts.truncation == "window" else self._long_texts
        return raise_failures(self._inference.answers(texts, own, self._prompt, long))

    def encode(self, texts: Sequence[Text]) -> list[Tokens | TextError]:
        """Tokens of each text, with the default prompt if there is one; the `TextError` in the place of a bad text."""
        return self._inference.encode(texts, self._prompt, self._long_texts)

    def run_ids(
        self, sequences: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None
    ) -> list[FloatArray]:
        """Logits of token id sequences, run as one micro-batch in the caller's order (`predict` would sort them)."""
        return self._inference.run_ids(sequences, token_types or [[0] * len(ids) for ids in sequences])[0]

    def _asking(self, options: CallOptions, prompt_name: str | None = None, prompt: str | None = None) -> Asking:
        own = prompt_name is prompt is None
        timing: Any = {name: value for name, value in options.items() if name not in _LONG}
        return Asking(
            prompt=self._prompt if own else resolve_prompt(self.manifest, prompt_name, prompt),
            long=self._long(options),
            **timing,
        )

    def _long(self, options: Mapping[str, Any]) -> LongTexts:
        """What becomes of long texts in a call: as loaded, but for what it says itself."""
        given = {field: options[name] for name, field in _LONG.items() if options.get(name) is not None}
        if not given:
            return self._long_texts
        same = given.get("truncation") in (None, self._long_texts.truncation)
        check_merge(given.get("merge"), self.task)
        return dataclasses.replace(self._long_texts if same else LongTexts(), **given)


def remedy(task: str, wanted: str) -> str:
    """What makes an embedding model's checkpoint do the other of its two tasks; "" for other models."""
    return f"export its checkpoint with --task {wanted}" if task in BARE and wanted in BARE else ""


def raise_failures(answers: Iterable[R | Failure]) -> Iterator[R]:
    """The answers, up to a failure, which is raised; a `TextError` names its text."""
    for answer in answers:
        if isinstance(answer, Failure):
            if isinstance(answer.error, TextError):
                raise TextError(f"text {answer.index}: {answer.error}") from None
            raise answer.error
        yield answer
