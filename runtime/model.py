"""`Model`: an opened bundle that answers, to threads and to coroutines; a thin layer over `nopad.runtime.answering`.

Texts are tokenized, sorted by length, packed into micro-batches under a token budget together with those of other
callers, run, and answered in the caller's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, TypedDict, TypeVar, Unpack, overload

import numpy as np

from nopad.runtime.answering import Answered, Answering, Asking
from nopad.runtime.engines.chain import ChainStatus
from nopad.runtime.errors import TextError, UsageError
from nopad.runtime.inference import MASKS_TOP_K, Decoder, Inference
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.scheduler.events import Observer
from nopad.runtime.scheduler.queue import Limits
from nopad.runtime.scheduler.request import Priority
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import (
    Embedding,
    Failure,
    FloatArray,
    MaskFill,
    Prediction,
    Ranked,
    Result,
    Tagging,
    Text,
    Truncation,
)

R = TypeVar("R")
OnError = Literal["raise", "return"]
Texts = list[str] | list[tuple[str, str]] | list[Text]


class CallOptions(TypedDict, total=False):
    """Keyword arguments of every method of `Model` that answers."""

    timeout: float | None
    priority: Priority


class Model:
    """An opened bundle, as `load` returns it. A context manager. May be used from any threads and event loops.

    All calls share one scheduler, which packs the texts of concurrent callers into common micro-batches
    (docs/serving.md). Every method that answers has a twin for coroutines: `predict`, `apredict`. A coroutine's texts
    are refused together with `OverloadedError` where too much waits already; a thread waits.

    `timeout`: seconds after which a call raises `DeadlineError`, and what of it has not run is dropped.
    `priority`: "interactive", or "batch" for what can wait until interactive calls are answered.
    """

    def __init__(
        self,
        inference: Inference,
        *,
        prompt: str = "",
        truncation: Truncation = "truncate",
        limits: Limits | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.bundle = inference.bundle
        self.manifest = inference.manifest
        self.artifact = inference.artifact
        self.token_multiple = inference.token_multiple
        self._inference = inference
        self._answering = Answering(inference, limits, observer)
        self.scheduler = self._answering.scheduler  # for a server: its state, and `drain`
        self._prompt = prompt
        self._truncation = truncation

    def __enter__(self) -> Model:
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
        """What the bundle does: text-classification, token-classification, fill-mask, embeddings or rerank."""
        return self.manifest.task

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

    @overload
    def predict(
        self,
        texts: Sequence[Text],
        *,
        top_k: int | None = ...,
        return_logits: bool = ...,
        **options: Unpack[CallOptions],
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self,
        texts: Sequence[Text],
        *,
        top_k: int | None = ...,
        return_logits: bool = ...,
        on_error: Literal["return"],
        **options: Unpack[CallOptions],
    ) -> list[Prediction | Failure]: ...
    @overload
    def predict(
        self,
        texts: Iterator[Text],
        *,
        top_k: int | None = ...,
        return_logits: bool = ...,
        on_error: OnError = ...,
        **options: Unpack[CallOptions],
    ) -> Iterator[Prediction | Failure]: ...
    def predict(
        self,
        texts: Sequence[Text] | Iterator[Text],
        *,
        top_k: int | None = None,
        return_logits: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[CallOptions],
    ) -> Any:
        """Classify texts (or pairs): a list for a list, in its order; a lazy iterator for an iterator.

        An iterator is read `WINDOW` texts at a time, so it may be endless; `timeout` is then for each window.
        `on_error="return"` returns a `Failure` in the place of a text that cannot be answered; "raise" raises its
        `TextError`, with its index.
        """
        decoder = self._predicting(top_k, return_logits, on_error)
        answers = self._answering.stream(texts, decoder, self._asking(options))
        if on_error == "raise":
            answers = _raise_failures(answers)
        return answers if isinstance(texts, Iterator) else list(answers)

    @overload
    async def apredict(
        self, texts: Text, *, top_k: int | None = ..., return_logits: bool = ..., **options: Unpack[CallOptions]
    ) -> Prediction: ...
    @overload
    async def apredict(
        self, texts: Texts, *, top_k: int | None = ..., return_logits: bool = ..., **options: Unpack[CallOptions]
    ) -> list[Prediction]: ...
    @overload
    async def apredict(
        self,
        texts: Texts,
        *,
        top_k: int | None = ...,
        return_logits: bool = ...,
        on_error: Literal["return"],
        **options: Unpack[CallOptions],
    ) -> list[Prediction | Failure]: ...
    async def apredict(
        self,
        texts: Text | Texts,
        *,
        top_k: int | None = None,
        return_logits: bool = False,
        on_error: OnError = "raise",
        **options: Unpack[CallOptions],
    ) -> Any:
        """`predict` for coroutines: one answer for one text (or pair), a list for a list."""
        decoder = self._predicting(top_k, return_logits, on_error)
        alone = isinstance(texts, str | tuple)
        listed: Any = [texts] if alone else texts
        answered = await self._answering.answer(listed, decoder, self._asking(options))
        answers = list(_raise_failures(answered.answers)) if on_error == "raise" else answered.answers
        return answers[0] if alone else answers

    def tag(
        self, texts: Sequence[str], *, return_logits: bool = False, **options: Unpack[CallOptions]
    ) -> list[Tagging]:
        """Label every token of each text, and group them into entities."""
        decoder = self._decoder("tag", "token-classification", return_logits=return_logits)
        return self._each(texts, decoder, self._asking(options))

    async def atag(
        self, texts: Sequence[str], *, return_logits: bool = False, **options: Unpack[CallOptions]
    ) -> list[Tagging]:
        """`tag` for coroutines."""
        decoder = self._decoder("tag", "token-classification", return_logits=return_logits)
        return await self._all(texts, decoder, self._asking(options))

    def fill(self, texts: Sequence[str], *, top_k: int = MASKS_TOP_K, **options: Unpack[CallOptions]) -> list[MaskFill]:
        """The best tokens for every mask in each text (the mask token is `manifest.mask_token`)."""
        decoder = self._decoder("fill", "fill-mask", top_k=top_k)
        return self._each(texts, decoder, self._asking(options))

    async def afill(
        self, texts: Sequence[str], *, top_k: int = MASKS_TOP_K, **options: Unpack[CallOptions]
    ) -> list[MaskFill]:
        """`fill` for coroutines."""
        return await self._all(texts, self._decoder("fill", "fill-mask", top_k=top_k), self._asking(options))

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> FloatArray:
        """Embeddings, float32 [len(texts), embedding size].

        `prompt_name`, `prompt`: the prompt before each text; without them, the bundle's default prompt, if it has one.
        """
        decoder = self._decoder("embed", "embeddings")
        asking = self._asking(options, prompt_name, prompt)
        return self._stacked(self._each(texts, decoder, asking))

    async def aembed(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> FloatArray:
        """`embed` for coroutines."""
        asking = self._asking(options, prompt_name, prompt)
        return self._stacked(await self._all(texts, self._decoder("embed", "embeddings"), asking))

    def rerank(
        self,
        query: str,
        passages: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> list[Ranked]:
        """Passages by relevance to the query, best first; prompts as in `embed`, before the query."""
        pairs, decoder = self._pairs(query, passages)
        asking = self._asking(options, prompt_name, prompt)
        return _ranked(passages, self._each(pairs, decoder, asking))

    async def arerank(
        self,
        query: str,
        passages: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> list[Ranked]:
        """`rerank` for coroutines."""
        pairs, decoder = self._pairs(query, passages)
        asking = self._asking(options, prompt_name, prompt)
        return _ranked(passages, await self._all(pairs, decoder, asking))

    def results(
        self,
        texts: Iterable[Text],
        *,
        top_k: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[Result | Failure]:
        """Answers for any task, lazily and in order; a `Failure` in the place of a bad text."""
        decoder: Decoder[Result] = self._inference.decoder(top_k)
        return self._answering.stream(texts, decoder, self._asking(options, prompt_name, prompt))

    async def aresults(
        self,
        texts: Sequence[Text],
        *,
        top_k: int | None = None,
        return_logits: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        decoder: Decoder[Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Answered[Any]:
        """`results` for coroutines, with the seconds of each step. `decoder`: of the logits, instead of the task's."""
        asking = self._asking(options, prompt_name, prompt)
        return await self._answering.answer(texts, decoder or self._inference.decoder(top_k, return_logits), asking)

    def logits(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Raw logits of each text: [num_labels], or [tokens_used, ...] for per-token tasks. For the parity gate.

        Run in the caller's thread, past the scheduler: an engine's failure on a micro-batch is not mended.
        """
        return list(self.iter_logits(texts))

    def iter_logits(self, texts: Iterable[Text]) -> Iterator[FloatArray]:
        """Like `logits`, lazily."""
        own: Decoder[FloatArray] = lambda logits, tokens, by: logits  # noqa: E731
        return _raise_failures(self._inference.answers(texts, own, self._prompt, self._truncation))

    def encode(self, texts: Sequence[Text]) -> list[Tokens | TextError]:
        """Tokens of each text, with the default prompt if there is one; the `TextError` in the place of a bad text."""
        return self._inference.encode(texts, self._prompt, self._truncation)

    def run_ids(
        self, sequences: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None
    ) -> list[FloatArray]:
        """Logits of token id sequences, run as one micro-batch in the caller's order (`predict` would sort them)."""
        return self._inference.run_ids(sequences, token_types or [[0] * len(ids) for ids in sequences])[0]

    def _asking(self, options: CallOptions, prompt_name: str | None = None, prompt: str | None = None) -> Asking:
        own = prompt_name is prompt is None
        return Asking(
            prompt=self._prompt if own else resolve_prompt(self.manifest, prompt_name, prompt),
            truncation=self._truncation,
            **options,
        )

    def _each(self, texts: Iterable[Text], decoder: Decoder[R], asking: Asking) -> list[R]:
        return list(_raise_failures(self._answering.stream(texts, decoder, asking)))

    async def _all(self, texts: Iterable[Text], decoder: Decoder[R], asking: Asking) -> list[R]:
        return list(_raise_failures((await self._answering.answer(texts, decoder, asking)).answers))

    def _predicting(self, top_k: int | None, return_logits: bool, on_error: OnError) -> Decoder[Prediction]:
        if on_error not in ("raise", "return"):
            raise UsageError(f"on_error is 'raise' or 'return', not {on_error!r}")
        return self._decoder("predict", "text-classification", "rerank", top_k=top_k, return_logits=return_logits)

    def _stacked(self, answers: Iterable[Embedding]) -> FloatArray:
        vectors = [answer.vector for answer in answers]
        if vectors:
            return np.stack(vectors)
        size = list(self.artifact.outputs.values())[0][-1]
        return np.zeros((0, int(size) if size.isdigit() else 0), dtype=np.float32)

    def _pairs(self, query: str, passages: Sequence[str]) -> tuple[list[Text], Decoder[Prediction]]:
        decoder = self._decoder("rerank", "rerank", return_logits=True)
        if isinstance(passages, str):
            raise UsageError("give a list of passages; put a single one in brackets: [passage]")
        return [(query, passage) for passage in passages], decoder

    def _decoder(self, method: str, *tasks: str, top_k: int | None = None, return_logits: bool = False) -> Decoder[Any]:
        if self.task not in tasks:
            other = {"embeddings": "embed", "token-classification": "tag", "fill-mask": "fill"}.get(
                self.task, "predict"
            )
            raise UsageError(f"{method}() is for {' and '.join(tasks)}, this bundle does {self.task}: use {other}()")
        return self._inference.decoder(top_k, return_logits)


def _raise_failures(answers: Iterable[R | Failure]) -> Iterator[R]:
    for answer in answers:
        if isinstance(answer, Failure):
            if isinstance(answer.error, TextError):
                raise TextError(f"text {answer.index}: {answer.error}") from None
            raise answer.error
        yield answer


def _ranked(passages: Sequence[str], answers: Sequence[Prediction]) -> list[Ranked]:
    # By logit, which still orders scores that a sigmoid rounds to 1.0.
    logits = [float(answer.logits[0]) for answer in answers if answer.logits is not None]
    best = sorted(range(len(answers)), key=lambda i: -logits[i])
    return [Ranked(index=i, score=answers[i].score, text=passages[i]) for i in best]
