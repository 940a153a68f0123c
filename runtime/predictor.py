"""`load` and `Model`: the Python API of a bundle, a thin layer over `nopad.runtime.inference`.

Texts are tokenized, sorted by length within a window, packed into micro-batches under a token budget, run, and
answered in the caller's order. A `Model` may be used from several threads: it does not change after `load`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import numpy as np

from nopad.runtime.bundle import open_bundle
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.chain import ChainStatus, EngineChain
from nopad.runtime.engines.gpus import gpu_at_hand
from nopad.runtime.engines.hardware import PRECISIONS
from nopad.runtime.engines.selection import EngineChoice, find_candidates
from nopad.runtime.errors import TextError, UsageError
from nopad.runtime.inference import MASKS_TOP_K, Decoder, Inference
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.prompts import resolve_prompt
from nopad.runtime.tokenizer import Tokens, open_bundle_encoder
from nopad.runtime.tune_file import tuned_here
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

R = TypeVar("R")
OnError = Literal["raise", "return"]
log = logging.getLogger("nopad")


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
    cache_folder: str | Path | None = None,
    allow_unverified: bool = False,
    allow_host_code: bool = False,
    verify: bool = True,
) -> Model:
    """Open a bundle folder; without `path`, the embedded default.

    `engine`: `auto` chooses the first engine that this machine can run and that has passed the parity gate, in the
    order that `nopad doctor` prints; where it fails, the next engine answers (`Model.status` tells). A name from
    `nopad.runtime.engines.base.ENGINES` selects that engine alone; a list of names is your own order; a factory is an
    engine of your own, for tests.
    `precision`, `file`: use only files of this precision, or only this file. None: on a CPU the most exact precision of
    the bundle, never a lower one unasked; on a GPU the fastest. "auto": the fastest that is verified, on a CPU by the
    measured table. "bf16" on a CPU: the bundle's fp32 file answers where the CPU has no such instructions, or where
    bf16 gives NaN, and nopad says so.
    What `nopad tune` found on this machine decides what is left open of `engine`, `precision` and `file`, if it agrees
    with those that are given, and then also `token_budget` and `threads`.
    `fallback`: False raises an error where another engine would answer instead of the chosen engine.
    `threads`: of the engine on the CPU; None: the engine library's own choice.
    `truncation`: `truncate` reads the first tokens of a text that is too long and says so in the answer
    (`tokens`, `tokens_used`); `error` refuses it.
    `token_budget`: tokens of one micro-batch; a longer text runs alone. None: what suits the engine.
    `prompt_name`, `prompt`: the prompt that is put before every text, by its name in the manifest's `prompts` or as a
    string; None: the bundle's default prompt.
    `cache_folder`: where OpenVINO keeps the model as compiled for this CPU (for ModernBERT-base in bf16 300 MB), so
    that the next load takes a quarter of the time; None: it compiles at every load.
    `allow_unverified`: open a bundle that has not passed the parity gate.
    `allow_host_code`: run the native code in a version-compatible TensorRT engine; only if you trust its maker.
    `verify`: check the SHA-256 of every file before it is opened; files that are not needed are not read
    (`nopad inspect` checks all).

    Raises `BundleError` or a subclass, `UsageError`, `EnvironmentProblem`.
    """
    if any(number is not None and number < 1 for number in (token_budget, threads)):
        raise UsageError(f"token_budget and threads must be positive, got {token_budget} and {threads}")
    if truncation not in ("truncate", "error"):
        raise UsageError(f"truncation is 'truncate' or 'error', not {truncation!r}")
    bundle = open_bundle(path, verify=False)
    if verify:
        bundle.check(bundle.common_files())
    sm = functools.cache(gpu_at_hand)
    tuned = tuned_here(bundle, sm, engine=engine, precision=precision, file=file)
    if tuned is not None:
        token_budget, threads = token_budget or tuned.token_budget, threads or tuned.threads
    candidates = find_candidates(
        bundle,
        engine,
        EngineOptions(
            threads=threads,
            pad_token_id=bundle.manifest.pad_token_id,
            cache_folder=Path(cache_folder) if cache_folder is not None else None,
            allow_host_code=allow_host_code,
        ),
        sm=sm,
        precision=precision,
        file=file,
        allow_unverified=allow_unverified,
        verify=verify,
    )
    if tuned is not None:
        winner = (tuned.engine, tuned.file)
        candidates.sort(key=lambda candidate: (candidate.name, candidate.artifact.file) != winner)
    before = resolve_prompt(bundle.manifest, prompt_name, prompt)
    inference = Inference(
        bundle=bundle,
        encoder=open_bundle_encoder(bundle),
        candidates=candidates,
        token_budget=token_budget,
        fallback=fallback,
    )
    _say_if_lowered(candidates[0].artifact.precision, inference.chain)
    return Model(inference, prompt=before, truncation=truncation)


def _say_if_lowered(wanted: str, chain: EngineChain) -> None:
    """Warn where no file in the precision that comes first could be opened, and a less exact one answers."""
    precision = chain.chosen.artifact.precision
    if {wanted, precision} <= set(PRECISIONS) and PRECISIONS.index(precision) > PRECISIONS.index(wanted):
        log.warning("%s answers: no file in %s can be opened here", chain.chosen, wanted)


def _logit(answer: Prediction) -> float:
    assert answer.logits is not None
    return float(answer.logits[0])


class Model:
    """An opened bundle, as `load` returns it. A context manager."""

    def __init__(self, inference: Inference, *, prompt: str = "", truncation: Truncation = "truncate") -> None:
        self.bundle = inference.bundle
        self.manifest = inference.manifest
        self.artifact = inference.artifact
        self.token_multiple = inference.token_multiple
        self._inference = inference
        self._prompt = prompt
        self._truncation = truncation

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the engines. The model cannot be used afterwards."""
        self._inference.close()

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

        An iterator is read `WINDOW` texts at a time, so it may be endless. `on_error="return"` returns a `Failure` in
        the place of a text that cannot be answered; "raise" raises its `TextError`, with its index.
        """
        self._require("predict", "text-classification", "rerank")
        if on_error not in ("raise", "return"):
            raise UsageError(f"on_error is 'raise' or 'return', not {on_error!r}")
        answers = self._stream(texts, self._inference.decoder(top_k, return_logits))
        if on_error == "raise":
            answers = _raise_failures(answers)
        return answers if isinstance(texts, Iterator) else list(answers)

    async def apredict(self, text: Text, *, top_k: int | None = None, return_logits: bool = False) -> Prediction:
        """Classify one text without blocking the event loop."""
        answers = await asyncio.to_thread(self.predict, [text], top_k=top_k, return_logits=return_logits)
        return answers[0]

    def tag(self, texts: Sequence[str], *, return_logits: bool = False) -> list[Tagging]:
        """Label every token of each text, and group them into entities."""
        self._require("tag", "token-classification")
        return list(_raise_failures(self._stream(texts, self._inference.decoder(return_logits=return_logits))))

    def fill(self, texts: Sequence[str], *, top_k: int = MASKS_TOP_K) -> list[MaskFill]:
        """The best tokens for every mask in each text (the mask token is `manifest.mask_token`)."""
        self._require("fill", "fill-mask")
        return list(_raise_failures(self._stream(texts, self._inference.decoder(top_k))))

    def embed(self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None) -> FloatArray:
        """Embeddings, float32 [len(texts), embedding size].

        `prompt_name`, `prompt`: the prompt before each text; without them, the bundle's default prompt, if it has one.
        """
        self._require("embed", "embeddings")
        if not texts:
            size = list(self.artifact.outputs.values())[0][-1]
            return np.zeros((0, int(size) if size.isdigit() else 0), dtype=np.float32)
        answers = self._stream(texts, self._inference.decoder(), self._prompt_of(prompt_name, prompt))
        return np.stack([answer.vector for answer in _raise_failures(answers)])

    def rerank(
        self, query: str, passages: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> list[Ranked]:
        """Passages by relevance to the query, best first; prompts as in `embed`, before the query."""
        self._require("rerank", "rerank")
        if isinstance(passages, str):
            raise UsageError("give a list of passages; put a single one in brackets: [passage]")
        pairs = [(query, passage) for passage in passages]
        decoder: Decoder[Prediction] = self._inference.decoder(return_logits=True)
        answers = list(_raise_failures(self._stream(pairs, decoder, self._prompt_of(prompt_name, prompt))))
        # By logit, which still orders scores that a sigmoid rounds to 1.0.
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
        """Answers for any task, lazily and in order; a `Failure` in the place of a bad text."""
        decoder: Decoder[Result] = self._inference.decoder(top_k)
        return self._stream(texts, decoder, self._prompt_of(prompt_name, prompt))

    def logits(self, texts: Sequence[Text]) -> list[FloatArray]:
        """Raw logits of each text: [num_labels], or [tokens_used, ...] for per-token tasks. For the parity gate."""
        return list(self.iter_logits(texts))

    def iter_logits(self, texts: Iterable[Text]) -> Iterator[FloatArray]:
        """Like `logits`, lazily."""
        return _raise_failures(self._stream(texts, lambda logits, tokens, by: logits))

    def encode(self, texts: Sequence[Text]) -> list[Tokens | TextError]:
        """Tokens of each text, with the default prompt if there is one; the `TextError` in the place of a bad text."""
        return self._inference.encode(texts, self._prompt, self._truncation)

    def run_ids(
        self, sequences: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None
    ) -> list[FloatArray]:
        """Logits of token id sequences, run as one micro-batch in the caller's order (`predict` would sort them)."""
        return self._inference.run_ids(sequences, token_types or [[0] * len(ids) for ids in sequences])[0]

    def _prompt_of(self, prompt_name: str | None, prompt: str | None) -> str:
        return self._prompt if prompt_name is prompt is None else resolve_prompt(self.manifest, prompt_name, prompt)

    def _stream(self, texts: Iterable[Text], decoder: Decoder[R], prompt: str | None = None) -> Iterator[R | Failure]:
        before = self._prompt if prompt is None else prompt
        return self._inference.answers(texts, decoder, before, self._truncation)

    def _require(self, method: str, *tasks: str) -> None:
        if self.task not in tasks:
            other = {"embeddings": "embed", "token-classification": "tag", "fill-mask": "fill"}.get(
                self.task, "predict"
            )
            raise UsageError(f"{method}() is for {' and '.join(tasks)}, this bundle does {self.task}: use {other}()")


def _raise_failures(answers: Iterator[R | Failure]) -> Iterator[R]:
    for answer in answers:
        if isinstance(answer, Failure):
            if isinstance(answer.error, TextError):
                raise TextError(f"text {answer.index}: {answer.error}") from None
            raise answer.error
        yield answer
