"""`load` and `Model`: the in-process face of a bundle.

Texts are tokenized, sorted by length within a window, packed into micro-batches under a token budget, run, and
answered in the caller's order. A `Model` may be used from several threads: nothing in it changes after `load`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import numpy as np

from nopad.model.packing import pack, plan_batches
from nopad.runtime import decode
from nopad.runtime.bundle import Bundle, open_bundle
from nopad.runtime.engines.base import TARGETS, Engine, EngineFactory, EngineOptions, engine_factory
from nopad.runtime.errors import BundleError, EngineError, TextError, UnverifiedError, UsageError
from nopad.runtime.manifest import Artifact
from nopad.runtime.tokenizer import TextEncoder, Tokens
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

# Tokens of one micro-batch. On CPUs more buys nothing (the matrices are large enough) and costs cache and memory.
TOKEN_BUDGET = 2048
# Texts looked at together: enough to sort by length, few enough that a stream of any length fits in memory.
WINDOW = 512
WINDOW_CHARACTERS = 2_000_000  # fewer texts where they are long: the tokenizer needs 50 bytes a character
R = TypeVar("R")
T = TypeVar("T")
OnError = Literal["raise", "return"]


def load(
    path: str | Path | None = None,
    *,
    engine: str | EngineFactory = "auto",
    threads: int | None = None,
    truncation: Truncation = "truncate",
    token_budget: int = TOKEN_BUDGET,
    allow_unverified: bool = False,
    verify: bool = True,
) -> Model:
    """Open a bundle folder, or the embedded default without `path`.

    `engine`: a name of `nopad.runtime.engines.base.ENGINES`, or `auto`; a factory for your own (tests).
    `threads`: of the engine; None leaves it to the engine's library.
    `truncation`: `truncate` reads the first tokens of a text that is too long and says so in the answer
    (`tokens`, `tokens_used`); `error` refuses it.
    `token_budget`: tokens of one micro-batch; a longer text runs alone.
    `allow_unverified`: open a bundle that has not passed the parity gate.
    `verify`: check the SHA-256 of every file first.

    Raises `BundleError` and its kinds, `UsageError`, `EnvironmentProblem`.
    """
    if token_budget < 1 or (threads is not None and threads < 1):
        raise UsageError(f"token_budget and threads must be positive, got {token_budget} and {threads}")
    if truncation not in ("truncate", "error"):
        raise UsageError(f"truncation is 'truncate' or 'error', not {truncation!r}")
    bundle = open_bundle(path, verify=verify)
    name = "onnx-cpu" if engine == "auto" or not isinstance(engine, str) else engine
    factory = engine_factory(name) if isinstance(engine, str) else engine
    artifact = next((a for a in bundle.manifest.artifacts if a.target == TARGETS[name]), None)
    if artifact is None:
        have = ", ".join(sorted({a.target for a in bundle.manifest.artifacts})) or "nothing"
        raise BundleError(f"{bundle.path} has no file for engine {name}; it holds {have}: export it with that target")
    if artifact.verdict != "verified" and not allow_unverified:
        raise UnverifiedError(
            f"{bundle.path} has not passed the parity gate ({artifact.file} is unverified): run nopad parity, or "
            "open it with allow_unverified=True (--allow-unverified)"
        )
    tokenizer = bundle.file(bundle.manifest.tokenizer)
    config = tokenizer.with_name("tokenizer_config.json")
    encoder = TextEncoder(
        tokenizer,
        bundle.manifest.max_length,
        truncation,
        config=config if config.relative_to(bundle.path).as_posix() in bundle.manifest.files else None,
    )
    options = EngineOptions(threads=threads, pad_token_id=bundle.manifest.pad_token_id)
    opened = factory(bundle.file(artifact.file), artifact, options)
    return Model(bundle=bundle, artifact=artifact, engine=opened, encoder=encoder, token_budget=token_budget)


def windows(items: Iterable[T], text: Callable[[T], object]) -> Iterator[list[T]]:
    """`items` in lists of at most `WINDOW`, and of about `WINDOW_CHARACTERS` characters of what `text` says of each."""
    window: list[T] = []
    characters = 0
    for item in items:
        window.append(item)
        parts = text(item)
        characters += sum(
            len(part) for part in (parts if isinstance(parts, tuple) else (parts,)) if isinstance(part, str)
        )
        if len(window) == WINDOW or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


class Model:
    """An opened bundle. A context manager; made by `load`."""

    def __init__(
        self, *, bundle: Bundle, artifact: Artifact, engine: Engine, encoder: TextEncoder, token_budget: int
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.artifact = artifact
        self._engine = engine
        self._encoder = encoder
        self._token_budget = token_budget
        self._closed = False
        self._per_token = self.manifest.task in ("token-classification", "fill-mask")

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the engine. The model cannot be used afterwards."""
        self._closed = True
        self._engine.close()

    @property
    def task(self) -> str:
        """What the bundle does: text-classification, token-classification, fill-mask, embeddings or rerank."""
        return self.manifest.task

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the logits."""
        return self.manifest.labels

    @overload
    def predict(
        self, texts: Sequence[Text], *, top_k: int | None = ..., return_logits: bool = ...
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self, texts: Sequence[Text], *, top_k: int | None = ..., return_logits: bool = ..., on_error: Literal["return"]
    ) -> list[Prediction | Failure]: ...
    @overload
    def predict(
        self, texts: Iterator[Text], *, top_k: int | None = ..., return_logits: bool = ..., on_error: OnError = ...
    ) -> Iterator[Prediction | Failure]: ...
    def predict(
        self,
        texts: Sequence[Text] | Iterator[Text],
        *,
        top_k: int | None = None,
        return_logits: bool = False,
        on_error: OnError = "raise",
    ) -> Any:
        """Classify texts (or pairs): a list for a list, in its order; a lazy iterator for an iterator.

        An iterator is read `WINDOW` texts at a time, so it may be endless. `on_error="return"` puts a `Failure` in
        the place of a text that cannot be answered; "raise" raises its `TextError`, which names its index.
        """
        self._require("predict", "text-classification", "rerank")
        return self._answer(texts, self._predict_one(top_k, return_logits), on_error)

    async def apredict(self, text: Text, *, top_k: int | None = None, return_logits: bool = False) -> Prediction:
        """Classify one text without blocking the event loop."""
        answers = await asyncio.to_thread(self.predict, [text], top_k=top_k, return_logits=return_logits)
        return answers[0]

    def tag(self, texts: Sequence[str], *, return_logits: bool = False) -> list[Tagging]:
        """Label every token of each text, and group them into entities."""
        self._require("tag", "token-classification")
        return list(self._raising(self._stream(texts, self._tag_one(return_logits))))

    def fill(self, texts: Sequence[str], *, top_k: int = 5) -> list[MaskFill]:
        """The best tokens for every mask in each text (the mask token is `manifest.mask_token`)."""
        self._require("fill", "fill-mask")
        return list(self._raising(self._stream(texts, self._fill_one(top_k))))

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings, float32 [len(texts), hidden_size]."""
        self._require("embed", "embeddings")
        if not texts:
            return np.zeros((0, int(self.manifest.architecture.get("hidden_size", 0))), dtype=np.float32)
        return np.stack([one.vector for one in self._raising(self._stream(texts, self._embed_one))])

    def rerank(self, query: str, passages: Sequence[str]) -> list[Ranked]:
        """Passages by relevance to the query, best first."""
        self._require("rerank", "rerank")
        if isinstance(passages, str):
            raise UsageError("give a list of passages; put a single one in brackets: [passage]")
        answers = self.predict([(query, passage) for passage in passages])
        ranked = [Ranked(index=i, score=a.score, text=passages[i]) for i, a in enumerate(answers)]
        return sorted(ranked, key=lambda one: -one.score)

    def results(self, texts: Iterable[Text], *, top_k: int | None = None) -> Iterator[Result | Failure]:
        """Answers of whatever the task is, lazily and in order; a `Failure` in the place of a bad text."""
        one: dict[str, Callable[[FloatArray, Tokens], Result]] = {
            "token-classification": self._tag_one(False),
            "fill-mask": self._fill_one(top_k or 5),
            "embeddings": self._embed_one,
        }
        return self._stream(texts, one.get(self.task, self._predict_one(top_k, False)))

    def logits(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Raw logits of each text: [num_labels], or [tokens_used, ...] for tasks per token. The parity gate's view."""
        return list(self.iter_logits(texts))

    def iter_logits(self, texts: Iterable[Text]) -> Iterator[FloatArray]:
        """The same, lazily."""
        return self._raising(self._stream(texts, lambda logits, tokens: logits))

    def encode(self, texts: Sequence[Text]) -> list[Tokens | TextError]:
        """The texts as the model reads them."""
        return self._encoder.encode(texts)

    def run_ids(
        self, sequences: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None
    ) -> list[FloatArray]:
        """Logits of token id sequences, all in one micro-batch."""
        self._require_open()
        types = token_types or [[0] * len(ids) for ids in sequences]
        batch = pack(sequences, types, multiple=self.artifact.token_multiple, filler_id=self.manifest.pad_token_id)
        out = self._engine.run(batch)
        rows = (
            [out[a:b] for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)]
            if self._per_token
            else list(out)
        )
        if any(not np.isfinite(row).all() for row in rows):
            raise EngineError(f"engine {self._engine.name} answered NaN or infinity on {batch.num_tokens} tokens")
        return rows

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError(f"the model of {self.bundle.path} is closed: load it again, or use it inside its `with`")

    def _require(self, method: str, *tasks: str) -> None:
        if self.task not in tasks:
            other = {"embeddings": "embed", "token-classification": "tag", "fill-mask": "fill"}.get(
                self.task, "predict"
            )
            raise UsageError(f"{method}() is for {' and '.join(tasks)}, this bundle does {self.task}: use {other}()")

    def _predict_one(self, top_k: int | None, keep: bool) -> Callable[[FloatArray, Tokens], Prediction]:
        if top_k is not None and top_k < 1:
            raise UsageError(f"top_k must be at least 1, got {top_k}")
        return lambda logits, tokens: decode.prediction(logits, tokens, self.manifest, self._engine.name, top_k, keep)

    def _tag_one(self, keep: bool) -> Callable[[FloatArray, Tokens], Tagging]:
        return lambda logits, tokens: decode.tagging(logits, tokens, self.manifest, self._engine.name, keep)

    def _fill_one(self, top_k: int) -> Callable[[FloatArray, Tokens], MaskFill]:
        mask_id = self._encoder.token_id(self.manifest.mask_token or "[MASK]")

        def one(logits: FloatArray, tokens: Tokens) -> MaskFill:
            if mask_id is None or mask_id not in tokens.input_ids:
                raise TextError(f"the text has no {self.manifest.mask_token or '[MASK]'} to fill (within max length)")
            return decode.mask_fill(logits, tokens, self._encoder, mask_id, self._engine.name, top_k)

        return one

    def _embed_one(self, logits: FloatArray, tokens: Tokens) -> Embedding:
        return decode.embedding(logits, tokens, self._engine.name)

    def _answer(self, texts: Any, one: Callable[[FloatArray, Tokens], R], on_error: OnError) -> Any:
        if on_error not in ("raise", "return"):
            raise UsageError(f"on_error is 'raise' or 'return', not {on_error!r}")
        stream = self._stream(texts, one)
        answers = self._raising(stream) if on_error == "raise" else stream
        return answers if isinstance(texts, Iterator) else list(answers)

    @staticmethod
    def _raising(answers: Iterator[R | Failure]) -> Iterator[R]:
        for answer in answers:
            if isinstance(answer, Failure):
                if isinstance(answer.error, TextError):
                    raise TextError(f"text {answer.index}: {answer.error}") from None
                raise answer.error
            yield answer

    def _stream(self, texts: Iterable[Text], one: Callable[[FloatArray, Tokens], R]) -> Iterator[R | Failure]:
        if isinstance(texts, str):  # which would be read letter by letter
            raise UsageError("give a list of texts; put a single one in brackets: [text]")
        start = 0
        for window in windows(texts, lambda text: text):
            self._require_open()
            yield from self._window(window, start, one)
            start += len(window)

    def _window(self, texts: Sequence[Text], start: int, one: Callable[[FloatArray, Tokens], R]) -> list[R | Failure]:
        encoded = self._encoder.encode(texts)
        answers: dict[int, R | Failure] = {
            i: Failure(index=start + i, error=item) for i, item in enumerate(encoded) if isinstance(item, TextError)
        }
        tokens = {i: item for i, item in enumerate(encoded) if not isinstance(item, TextError)}
        index = list(tokens)
        padded = self.artifact.layout == "padded"
        plan = plan_batches(
            [tokens[i].used for i in index], token_budget=self._token_budget, max_sequences=WINDOW, padded=padded
        )
        for batch in plan:
            members = [tokens[index[i]] for i in batch]
            try:
                rows = self.run_ids([m.input_ids for m in members], [m.token_type_ids for m in members])
            except EngineError as error:  # costs this batch alone
                answers |= {index[i]: Failure(index=start + index[i], error=error) for i in batch}
                continue
            for i, row in zip(batch, rows, strict=True):
                try:
                    answers[index[i]] = one(row, tokens[index[i]])
                except TextError as error:
                    answers[index[i]] = Failure(index=start + index[i], error=error)
        return [answers[i] for i in range(len(texts))]
