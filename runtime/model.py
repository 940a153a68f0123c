"""`Model`: an opened bundle that answers, to threads and to coroutines; a thin layer over `nopad.runtime.answering`.

Texts are tokenized, sorted by length, packed into micro-batches under a token budget together with those of other
callers, run, and answered in the caller's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, Unpack, overload

import numpy as np

from nopad.runtime.answering import Answered, Asking
from nopad.runtime.errors import UsageError
from nopad.runtime.explain.explaining import Asked, Explainer
from nopad.runtime.inference import MASKS_TOP_K, Decoder
from nopad.runtime.opened import CallOptions, OpenedBundle, raise_failures
from nopad.runtime.types import (
    IGNORED_LABELS,
    By,
    Embedding,
    Explanation,
    Failure,
    FloatArray,
    MaskFill,
    Method,
    Prediction,
    Ranked,
    Removal,
    Result,
    Strategy,
    Tagging,
    Text,
)

R = TypeVar("R")
OnError = Literal["raise", "return"]
Texts = list[str] | list[tuple[str, str]] | list[Text]


class Model(OpenedBundle):
    """An opened bundle, as `load` returns it. A context manager. May be used from any threads and event loops.

    All calls share one scheduler, which packs the texts of concurrent callers into common micro-batches
    (docs/serving.md). Every method that answers has a twin for coroutines: `predict`, `apredict`. A coroutine's texts
    are refused together with `OverloadedError` where too much waits already; a thread waits.

    `timeout`: seconds after which a call raises `DeadlineError`, and what of it has not run is dropped.
    `priority`: "interactive", or "batch" for what can wait until interactive calls are answered.
    `truncation`, `truncation_side`, `stride`, `merge`: what becomes of texts over the model's max length, where it is
    not what `load` was told (docs/long-texts.md).
    """

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
            answers = raise_failures(answers)
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
        answers = list(raise_failures(answered.answers)) if on_error == "raise" else answered.answers
        return answers[0] if alone else answers

    def tag(
        self,
        texts: Sequence[str],
        *,
        strategy: Strategy | None = None,
        ignore_labels: Sequence[str] = IGNORED_LABELS,
        return_logits: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[Tagging]:
        """Label every token of each text, and group them into entities.

        `strategy`: none, simple, first, average or max, as transformers' pipeline groups (`aggregation_strategy`);
        None: by the model's own tag scheme. `ignore_labels`: of entities that are left out.
        """
        decoder = self._tagger(strategy, ignore_labels, return_logits)
        return self._each(texts, decoder, self._asking(options))

    async def atag(
        self,
        texts: Sequence[str],
        *,
        strategy: Strategy | None = None,
        ignore_labels: Sequence[str] = IGNORED_LABELS,
        return_logits: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[Tagging]:
        """`tag` for coroutines."""
        decoder = self._tagger(strategy, ignore_labels, return_logits)
        return await self._all(texts, decoder, self._asking(options))

    def fill(
        self,
        texts: Sequence[str],
        *,
        top_k: int = MASKS_TOP_K,
        targets: Sequence[str] | None = None,
        **options: Unpack[CallOptions],
    ) -> list[MaskFill]:
        """The best tokens for every mask in each text (the mask token is `manifest.mask_token`), or of `targets`."""
        decoder = self._decoder("fill", "fill-mask", top_k=top_k, targets=targets)
        return self._each(texts, decoder, self._asking(options))

    async def afill(
        self,
        texts: Sequence[str],
        *,
        top_k: int = MASKS_TOP_K,
        targets: Sequence[str] | None = None,
        **options: Unpack[CallOptions],
    ) -> list[MaskFill]:
        """`fill` for coroutines."""
        decoder = self._decoder("fill", "fill-mask", top_k=top_k, targets=targets)
        return await self._all(texts, decoder, self._asking(options))

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

    def embed_tokens(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> list[FloatArray]:
        """An embedding of each token, special tokens and a prompt's included: of each text float32 [tokens, size]."""
        decoder = self._decoder("embed_tokens", "token-embeddings")
        return [each.vectors for each in self._each(texts, decoder, self._asking(options, prompt_name, prompt))]

    async def aembed_tokens(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> list[FloatArray]:
        """`embed_tokens` for coroutines."""
        decoder = self._decoder("embed_tokens", "token-embeddings")
        return [each.vectors for each in await self._all(texts, decoder, self._asking(options, prompt_name, prompt))]

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

    def explain(
        self,
        texts: Sequence[Text],
        *,
        label: str | None = None,
        method: Method = "occlusion",
        by: By = "word",
        budget: int | None = None,
        removal: Removal = "drop",
        on_error: OnError = "raise",
        **options: Unpack[CallOptions],
    ) -> list[Explanation | Failure]:
        """What the tokens, words or sentences of each text did for `label` (None: its own answer): docs/explain.md.

        `budget`: the most runs for a text. Other callers go first, unless `priority` is said. `on_error`: as `predict`.
        """
        asked = Asked(method=method, by=by, label=label, budget=budget, removal=removal)
        answers = self.explainer(asked, **options).answers(texts)
        return list(raise_failures(answers) if on_error == "raise" else answers)

    async def aexplain(
        self,
        text: Text,
        *,
        label: str | None = None,
        method: Method = "occlusion",
        by: By = "word",
        budget: int | None = None,
        removal: Removal = "drop",
        **options: Unpack[CallOptions],
    ) -> Explanation:
        """`explain` for coroutines, of one text."""
        asked = Asked(method=method, by=by, label=label, budget=budget, removal=removal)
        answered = await self.explainer(asked, **options).answer([text])
        return next(raise_failures(answered.answers))

    def explainer(self, asked: Asked, **options: Unpack[CallOptions]) -> Explainer:
        """What `explain` and `aexplain` ask."""
        return Explainer(self._answering, asked, self._asking({"priority": "batch", **options}))

    def results(
        self,
        texts: Iterable[Text],
        *,
        top_k: int | None = None,
        strategy: Strategy | None = None,
        ignore_labels: Sequence[str] = IGNORED_LABELS,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[Result | Failure]:
        """Answers for any task, lazily and in order; a `Failure` in the place of a bad text.

        `strategy`, `ignore_labels`: as of `tag`.
        """
        decoder: Decoder[Result] = self._inference.decoder(top_k, strategy=strategy, ignore_labels=ignore_labels)
        return self._answering.stream(texts, decoder, self._asking(options, prompt_name, prompt))

    async def aresults(
        self,
        texts: Sequence[Text],
        *,
        top_k: int | None = None,
        return_logits: bool = False,
        strategy: Strategy | None = None,
        ignore_labels: Sequence[str] = IGNORED_LABELS,
        targets: Sequence[str] | None = None,
        all_or_none: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        decoder: Decoder[Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> Answered[Any]:
        """`results` for coroutines: all answers at once, and the seconds that each step took.

        `targets`: as of `fill`. `all_or_none`: where a text cannot be read (or is too long for truncation "error"),
        nothing is computed, and the answers are the `Failure`s of such texts alone. `decoder`: what makes an answer of
        a text's logits, instead of the task's.
        """
        decoder = decoder or self._inference.decoder(
            top_k, return_logits, strategy=strategy, ignore_labels=ignore_labels, targets=targets
        )
        asking = self._asking(options, prompt_name, prompt)
        return await self._answering.answer(texts, decoder, asking, whole=all_or_none)

    def _each(self, texts: Iterable[Text], decoder: Decoder[R], asking: Asking) -> list[R]:
        return list(raise_failures(self._answering.stream(texts, decoder, asking)))

    async def _all(self, texts: Iterable[Text], decoder: Decoder[R], asking: Asking) -> list[R]:
        return list(raise_failures((await self._answering.answer(texts, decoder, asking)).answers))

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

    def _tagger(self, strategy: Strategy | None, ignore_labels: Sequence[str], return_logits: bool) -> Decoder[Tagging]:
        options = {"strategy": strategy, "ignore_labels": ignore_labels, "return_logits": return_logits}
        return self._decoder("tag", "token-classification", **options)

    def _decoder(self, method: str, *tasks: str, **options: Any) -> Decoder[Any]:
        if self.task not in tasks:
            others = {"token-classification": "tag", "fill-mask": "fill", "token-embeddings": "embed_tokens"}
            other = {**others, "embeddings": "embed"}.get(self.task, "predict")
            advice = ", or ".join(filter(None, (f"use {other}()", self.remedy(tasks[0]))))
            raise UsageError(f"{method}() is for {' and '.join(tasks)}, this bundle does {self.task}: {advice}")
        return self._inference.decoder(**options)


def _ranked(passages: Sequence[str], answers: Sequence[Prediction]) -> list[Ranked]:
    # By logit, which still orders scores that a sigmoid rounds to 1.0.
    logits = [float(answer.logits[0]) for answer in answers if answer.logits is not None]
    best = sorted(range(len(answers)), key=lambda i: -logits[i])
    return [Ranked(index=i, score=answers[i].score, text=passages[i]) for i in best]
