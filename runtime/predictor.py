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

from nopad.model.packing import PackedBatch, pack, plan_batches, round_up
from nopad.runtime import decode
from nopad.runtime.batching import WINDOW, windows
from nopad.runtime.bundle import Bundle, open_bundle
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.chain import Candidate, ChainStatus, EngineChain
from nopad.runtime.engines.gpus import gpu_at_hand
from nopad.runtime.engines.selection import EngineChoice, find_candidates
from nopad.runtime.errors import BundleError, EngineError, TextError, UsageError
from nopad.runtime.profiles import ShapeProfile, plan_in_profiles
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.tokenizer import TextEncoder, Tokens, open_encoder
from nopad.runtime.types import (
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

PROBE = "a film"  # what an engine is asked before it is trusted
R = TypeVar("R")
T = TypeVar("T")
Decoder = Callable[[FloatArray, Tokens, str], R]  # logits of one text, its tokens, the engine -> the answer
OnError = Literal["raise", "return"]


def load(
    path: str | Path | None = None,
    *,
    engine: EngineChoice = "auto",
    precision: str | None = None,
    file: str | None = None,
    fallback: bool = True,
    threads: int | None = None,
    truncation: Truncation = "truncate",
    token_budget: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    allow_unverified: bool = False,
    allow_host_code: bool = False,
    verify: bool = True,
) -> Model:
    """Open a bundle folder, or the embedded default without `path`.

    `engine`: `auto` takes the first engine that this machine can run and that has passed the parity gate, in the order
    that `nopad doctor` prints, and answers with the next one what it fails on (`Model.status` says so); a name of
    `nopad.runtime.engines.base.ENGINES` takes that engine alone; a list of names is an order of your own; a factory
    is an engine of your own (tests).
    `precision`, `file`: only files of this precision, or this file; None takes what suits the engine.
    `fallback`: False gives an error where another engine would answer instead of the chosen one.
    `threads`: of the engine; None leaves it to the engine's library.
    `truncation`: `truncate` reads the first tokens of a text that is too long and says so in the answer
    (`tokens`, `tokens_used`); `error` refuses it.
    `token_budget`: tokens of one micro-batch; a longer text runs alone. None: what suits the engine.
    `prompt_name`, `prompt`: what is put before every text, by its name in the manifest's `prompts` or as it is; None
    takes the bundle's default prompt.
    `allow_unverified`: open a bundle that has not passed the parity gate.
    `allow_host_code`: run the native code that a version-compatible TensorRT engine carries: only from those you trust.
    `verify`: check the SHA-256 of every file first.

    Raises `BundleError` and its kinds, `UsageError`, `EnvironmentProblem`.
    """
    if any(number is not None and number < 1 for number in (token_budget, threads)):
        raise UsageError(f"token_budget and threads must be positive, got {token_budget} and {threads}")
    if truncation not in ("truncate", "error"):
        raise UsageError(f"truncation is 'truncate' or 'error', not {truncation!r}")
    bundle = open_bundle(path, verify=verify)
    candidates = find_candidates(
        bundle,
        engine,
        EngineOptions(threads=threads, pad_token_id=bundle.manifest.pad_token_id, allow_host_code=allow_host_code),
        sm=gpu_at_hand,
        precision=precision,
        file=file,
        allow_unverified=allow_unverified,
    )
    manifest = bundle.manifest
    return Model(
        bundle=bundle,
        candidates=candidates,
        encoder=open_encoder(bundle.file(manifest.tokenizer), manifest.max_length, truncation, manifest=manifest),
        token_budget=token_budget,
        fallback=fallback,
        prompt=resolve_prompt(manifest, prompt_name, prompt),
    )


def _logit(answer: Prediction) -> float:
    assert answer.logits is not None
    return float(answer.logits[0])


class Model:
    """An opened bundle. A context manager; made by `load`."""

    def __init__(
        self,
        *,
        bundle: Bundle,
        candidates: Sequence[Candidate],
        encoder: TextEncoder,
        token_budget: int | None = None,
        fallback: bool = True,
        prompt: str = "",
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self._encoder = encoder
        self._prompt = prompt
        self.token_multiple = max(candidate.artifact.token_multiple for candidate in candidates)
        (probe,) = encoder.encode([PROBE])
        if isinstance(probe, TextError):
            raise BundleError(f"the tokenizer of {bundle.path} cannot read {PROBE!r}: {probe}; export the bundle again")
        self._chain = EngineChain(candidates, self._pack([probe.input_ids], [probe.token_type_ids]), fallback=fallback)
        self.artifact = self._chain.chosen.artifact
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
        self._chain.close()

    def status(self) -> ChainStatus:
        """Which engine was chosen, whether the model is degraded, and how each engine fares."""
        return self._chain.status()

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
        """The shapes that the chosen engine takes; () for any."""
        return self._chain.profiles

    @property
    def token_budget(self) -> int:
        """Tokens of a micro-batch: what `load` was told, else what suits the chosen engine."""
        return self._token_budget or self._chain.token_budget

    @property
    def threads(self) -> int | None:
        """Threads of the chosen engine's library on the CPU, as it says now; None where it does not."""
        return self._chain.threads

    def takes(self, lengths: Sequence[int]) -> bool:
        """Whether the chosen engine answers texts of so many tokens in one micro-batch."""
        tokens = round_up(sum(lengths), self.token_multiple)
        shape = tokens, len(lengths), max(lengths)
        return not self.profiles or any(profile.admits(*shape) for profile in self.profiles)

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

    def embed(self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None) -> FloatArray:
        """Embeddings, float32 [len(texts), embedding size].

        `prompt_name`, `prompt`: what is put before each text; without, the bundle's default prompt, if it has one.
        """
        self._require("embed", "embeddings")
        if not texts:
            size = list(self.artifact.outputs.values())[0][-1]
            return np.zeros((0, int(size) if size.isdigit() else 0), dtype=np.float32)
        before = self._prompt_of(prompt_name, prompt)
        return np.stack([one.vector for one in self._raising(self._stream(texts, decode.embedding, before))])

    def rerank(
        self, query: str, passages: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> list[Ranked]:
        """Passages by relevance to the query, best first; prompts as for `embed`, before the query."""
        self._require("rerank", "rerank")
        if isinstance(passages, str):
            raise UsageError("give a list of passages; put a single one in brackets: [passage]")
        pairs = [(query, passage) for passage in passages]
        one = self._predict_one(None, True)
        answers = list(self._raising(self._stream(pairs, one, self._prompt_of(prompt_name, prompt))))
        # By logit: where a sigmoid gives 1.0 to several, they still have an order.
        best = sorted(range(len(answers)), key=lambda i: -_logit(answers[i]))
        return [Ranked(index=i, score=answers[i].score, text=passages[i]) for i in best]

    def results(
        self,
        texts: Iterable[Text],
        *,
        top_k: int | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Iterator[Result | Failure]:
        """Answers of whatever the task is, lazily and in order; a `Failure` in the place of a bad text."""
        one: dict[str, Decoder[Result]] = {
            "token-classification": self._tag_one(False),
            "fill-mask": self._fill_one(top_k or 5),
            "embeddings": decode.embedding,
        }
        before = self._prompt_of(prompt_name, prompt)
        return self._stream(texts, one.get(self.task, self._predict_one(top_k, False)), before)

    def logits(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Raw logits of each text: [num_labels], or [tokens_used, ...] for tasks per token. The parity gate's view."""
        return list(self.iter_logits(texts))

    def iter_logits(self, texts: Iterable[Text]) -> Iterator[FloatArray]:
        """The same, lazily."""
        return self._raising(self._stream(texts, lambda logits, tokens, name: logits))

    def encode(self, texts: Sequence[Text]) -> list[Tokens | TextError]:
        """The texts as the model reads them, with the default prompt if there is one."""
        return self._encoder.encode(texts, self._prompt)

    def run_ids(
        self, sequences: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None
    ) -> list[FloatArray]:
        """Logits of token id sequences, all in one micro-batch."""
        return self._run(sequences, token_types or [[0] * len(ids) for ids in sequences])[0]

    def _prompt_of(self, prompt_name: str | None, prompt: str | None) -> str:
        return self._prompt if prompt_name is prompt is None else resolve_prompt(self.manifest, prompt_name, prompt)

    def _pack(
        self, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]], prompts: Sequence[int] | None = None
    ) -> PackedBatch:
        filler = self.manifest.pad_token_id
        return pack(sequences, types, multiple=self.token_multiple, filler_id=filler, prompt_lengths=prompts)

    def _run(
        self, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]], prompts: Sequence[int] | None = None
    ) -> tuple[list[FloatArray], str]:
        """Logits of each sequence, and the name of the engine that answered."""
        self._require_open()
        batch = self._pack(sequences, types, prompts)
        answer = self._chain.run(batch)
        out = answer.logits
        if self._per_token:
            return [out[a:b] for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)], answer.engine
        return list(out), answer.engine

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError(f"the model of {self.bundle.path} is closed: load it again, or use it inside its `with`")

    def _require(self, method: str, *tasks: str) -> None:
        if self.task not in tasks:
            other = {"embeddings": "embed", "token-classification": "tag", "fill-mask": "fill"}.get(
                self.task, "predict"
            )
            raise UsageError(f"{method}() is for {' and '.join(tasks)}, this bundle does {self.task}: use {other}()")

    def _predict_one(self, top_k: int | None, keep: bool) -> Decoder[Prediction]:
        if top_k is not None and top_k < 1:
            raise UsageError(f"top_k must be at least 1, got {top_k}")
        return lambda logits, tokens, name: decode.prediction(logits, tokens, self.manifest, name, top_k, keep)

    def _tag_one(self, keep: bool) -> Decoder[Tagging]:
        return lambda logits, tokens, name: decode.tagging(logits, tokens, self.manifest, name, keep)

    def _fill_one(self, top_k: int) -> Decoder[MaskFill]:
        mask_id = self._encoder.token_id(self.manifest.mask_token or "[MASK]")

        def one(logits: FloatArray, tokens: Tokens, name: str) -> MaskFill:
            if mask_id is None or mask_id not in tokens.input_ids:
                raise TextError(f"the text has no {self.manifest.mask_token or '[MASK]'} to fill (within max length)")
            return decode.mask_fill(logits, tokens, self._encoder, mask_id, name, top_k)

        return one

    def _answer(self, texts: Any, one: Decoder[R], on_error: OnError) -> Any:
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

    def _stream(self, texts: Iterable[Text], one: Decoder[R], prompt: str | None = None) -> Iterator[R | Failure]:
        if isinstance(texts, str):  # which would be read letter by letter
            raise UsageError("give a list of texts; put a single one in brackets: [text]")
        start = 0
        for window in windows(texts, lambda text: text):
            self._require_open()
            yield from self._window(window, start, one, self._prompt if prompt is None else prompt)
            start += len(window)

    def _window(self, texts: Sequence[Text], start: int, one: Decoder[R], prompt: str) -> list[R | Failure]:
        encoded = self._encoder.encode(texts, prompt)
        answers: dict[int, R | Failure] = {
            i: Failure(index=start + i, error=item) for i, item in enumerate(encoded) if isinstance(item, TextError)
        }
        tokens = {i: item for i, item in enumerate(encoded) if not isinstance(item, TextError)}
        index = list(tokens)
        plan = self.plan([tokens[i].used for i in index])
        for batch in plan:
            members = [tokens[index[i]] for i in batch]
            try:
                prompts = [m.prompt_length for m in members]
                rows, name = self._run([m.input_ids for m in members], [m.token_type_ids for m in members], prompts)
            except EngineError as error:  # costs this batch alone
                answers |= {index[i]: Failure(index=start + index[i], error=error) for i in batch}
                continue
            for i, row in zip(batch, rows, strict=True):
                try:
                    answers[index[i]] = one(row, tokens[index[i]], name)
                except TextError as error:
                    answers[index[i]] = Failure(index=start + index[i], error=error)
        return [answers[i] for i in range(len(texts))]

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Micro-batches that suit the chosen engine."""
        if self.profiles:
            return plan_in_profiles(
                lengths,
                self.profiles,
                token_budget=self._token_budget,
                max_sequences=WINDOW,
                multiple=self.token_multiple,
            )
        padded, suits = self.artifact.layout == "padded", self._chain.token_budget
        return plan_batches(
            lengths, token_budget=self.token_budget, max_sequences=WINDOW, padded=padded, square_budget=suits
        )
