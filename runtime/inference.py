"""From texts to answers in three steps, over an opened bundle: encode, run, decode.

A text that is read in windows is run as several, of which `Inference.finish` makes one answer.

Each step may be called on its own and from any thread, so that texts can be tokenized while a batch runs: an
`Inference` does not change after it is opened. `Inference.answers` does all three in turn, in the caller's thread; for
many callers, `nopad.runtime.answering`. Knows no queue and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar, cast

from nopad.model.head import PER_TOKEN
from nopad.model.packing import PackedBatch, pack
from nopad.runtime import decode, long_texts
from nopad.runtime.batching import BatchPlanner, windows
from nopad.runtime.bundle import Bundle
from nopad.runtime.engines.chain import Candidate, EngineChain
from nopad.runtime.errors import BundleError, ClosedError, EngineError, NopadError, TextError, UsageError
from nopad.runtime.tokenizer import TextEncoder, Tokens
from nopad.runtime.types import (
    IGNORED_LABELS,
    AnsweredBy,
    Failure,
    FloatArray,
    LongTexts,
    MaskFill,
    Merge,
    Strategy,
    Text,
)

TRUNCATED = LongTexts()  # long texts are cut as the tokenizer cuts them
PROBE = "a film"  # the text of an engine's self-check
MASKS_TOP_K = 5  # candidates for each mask, unless the caller says otherwise
R = TypeVar("R")
Decoder = Callable[[FloatArray, Tokens, AnsweredBy], R]  # logits of one text, its tokens, whose they are -> the answer


class Piece(NamedTuple):
    """What is run of a text: all of it, or one of its windows."""

    tokens: Tokens
    decoder: Decoder[Any]


class Inference:
    """An opened bundle: its tokenizer, its engines, and what its logits mean.

    Raises `EnvironmentProblem` if none of the engines can run, and `BundleError`.
    """

    def __init__(
        self,
        *,
        bundle: Bundle,
        encoder: TextEncoder,
        candidates: Sequence[Candidate],
        token_budget: int | None = None,
        fallback: bool = True,
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.token_multiple = max(candidate.artifact.token_multiple for candidate in candidates)
        self.encoder = encoder
        self._per_token = self.manifest.task in PER_TOKEN
        self._closed = False
        (probe,) = encoder.encode([PROBE])
        if isinstance(probe, TextError):
            raise BundleError(f"the tokenizer of {bundle.path} cannot read {PROBE!r}: {probe}; export the bundle again")
        self._probe = probe
        self.chain = EngineChain(candidates, self._pack([probe.input_ids], [probe.token_type_ids]), fallback=fallback)
        self.artifact = self.chain.chosen.artifact
        self.planner = BatchPlanner(
            engine_tokens=self.chain.token_budget,
            requested_tokens=token_budget,
            profiles=self.chain.profiles,
            token_multiple=self.token_multiple,
            padded=self.artifact.layout == "padded",
        )

    def encode(self, texts: Sequence[Text], prompt: str = "", long: LongTexts = TRUNCATED) -> list[Tokens | TextError]:
        """Tokens of each text, with `prompt` before it; for a text that cannot be read, the error in its place."""
        found = self.encoder.encode(texts, prompt, long.truncation, side=long.side)
        if long.truncation != "window":
            return found
        longest = self.encoder.max_length
        return [text if isinstance(text, TextError) else long_texts.divide(text, longest, long) for text in found]

    def run(self, texts: Sequence[Tokens]) -> tuple[list[FloatArray], AnsweredBy]:
        """Logits of texts, run as a single micro-batch, and what answered.

        For each text, float32: [num_labels], [embedding size], or [tokens_used, ...] for per-token tasks.
        Raises `EngineError` if no engine can run the batch, and `UsageError` once closed.
        """
        return self.run_ids(
            [text.input_ids for text in texts],
            [text.token_type_ids for text in texts],
            [text.prompt_length for text in texts],
        )

    def probe(self) -> None:
        """Run a short text. Raises as `run` does."""
        self.run([self._probe])

    def run_ids(
        self,
        sequences: Sequence[Sequence[int]],
        token_types: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int] | None = None,
    ) -> tuple[list[FloatArray], AnsweredBy]:
        """Like `run`, for token ids."""
        self.require_open()
        batch = self._pack(sequences, token_types, prompt_lengths)
        answer = self.chain.run(batch)
        logits = answer.logits
        if self._per_token:
            ends = batch.cu_seqlens
            return [logits[start:end] for start, end in zip(ends, ends[1:], strict=False)], answer.by
        return list(logits), answer.by

    def decoder(
        self,
        top_k: int | None = None,
        return_logits: bool = False,
        *,
        strategy: Strategy | None = None,
        ignore_labels: Sequence[str] = IGNORED_LABELS,
        targets: Sequence[str] | None = None,
    ) -> Decoder[Any]:
        """The function that turns one text's logits into the answer of the bundle's task.

        `strategy`, `ignore_labels`: of entities, as transformers' pipeline has them; None groups as
        `nopad.runtime.entities` does. `targets`: the only tokens that may fill a mask.
        That function raises `TextError` for a text that it cannot answer (no mask, a pair for a tagger). This method
        raises `UsageError` for a `top_k` below 1, an unknown strategy, and targets that are not a token each.
        """
        if top_k is not None and top_k < 1:
            raise UsageError(f"top_k must be at least 1, got {top_k}")
        head = self.manifest.head
        if head.task == "token-classification":
            grouping = decode.grouping(self.encoder, head, strategy, ignore_labels)
            return lambda logits, tokens, by: decode.tagging(logits, tokens, head, by, return_logits, grouping)
        if strategy is not None:
            raise UsageError(f"entities are for token-classification, this bundle does {head.task}")
        if head.task == "fill-mask":
            return self._mask_decoder(top_k or MASKS_TOP_K, targets)
        if targets is not None:
            raise UsageError(f"targets are for fill-mask, this bundle does {head.task}")
        if head.task == "embeddings":
            return decode.embedding
        if head.task == "token-embeddings":
            return decode.token_embeddings
        return lambda logits, tokens, by: decode.prediction(logits, tokens, head, by, top_k, return_logits)

    def _mask_decoder(self, top_k: int, targets: Sequence[str] | None) -> Decoder[MaskFill]:
        head, encoder, mask_id = self.manifest.head, self.encoder, self.mask_id
        among = None if targets is None else decode.target_ids(targets, encoder)

        def fill(logits: FloatArray, tokens: Tokens, by: AnsweredBy) -> MaskFill:
            if mask_id is None or mask_id not in tokens.input_ids:
                raise TextError(f"the text has no {self._mask} to fill (within max length)")
            return decode.mask_fill(logits, tokens, head, encoder, mask_id, by, top_k, among)

        return fill

    @property
    def _mask(self) -> str:
        return self.manifest.mask_token or "[MASK]"

    @property
    def mask_id(self) -> int | None:
        """Id of the mask token; None for a tokenizer without one."""
        return self.encoder.token_id(self._mask)

    def answers(
        self, texts: Iterable[Text], decoder: Decoder[R], prompt: str = "", long: LongTexts = TRUNCATED
    ) -> Iterator[R | Failure]:
        """Each text's answer in order, lazily, a window at a time; a `Failure` where there is none.

        If every engine fails on a batch, only its texts fail.
        """
        start = 0
        for window in windows(listed(texts), lambda text: text):
            self.require_open()
            encoded = self.encode(window, prompt, long)
            results = self.run_all(pieces(encoded, decoder))
            yield from collect(encoded, self.finish(encoded, results, decoder, long.merge), start)
            start += len(window)

    def run_all(self, parts: Sequence[Piece]) -> list[Any]:
        """What `finish` takes of each, in order, or the error of its micro-batch."""
        results: dict[int, Any] = {}
        for batch in self.planner.plan([part.tokens.used for part in parts]):
            try:
                got = self.run_pieces([parts[i] for i in batch])
            except EngineError as error:
                results |= dict.fromkeys(batch, error)
            else:
                results |= dict(zip(batch, got, strict=True))
        return [results[i] for i in range(len(parts))]

    def run_pieces(self, parts: Sequence[Piece]) -> list[Any]:
        """What `finish` takes of each, run as a single micro-batch: its logits and whose they are.

        Of a fill-mask model its answer: logits over a whole vocabulary must not pile up. Raises as `run` does.
        """
        logits, by = self.run([part.tokens for part in parts])
        if self.manifest.task != "fill-mask":
            return [(row, by) for row in logits]
        return [decoded(part.decoder, row, part.tokens, by) for part, row in zip(parts, logits, strict=True)]

    def finish(
        self, encoded: Iterable[Tokens | TextError], results: Iterable[Any], decoder: Decoder[R], merge: Merge | None
    ) -> Iterator[R | NopadError]:
        """The answer of each text that could be read, from the results of its pieces, or the reason why it has none."""
        rest = iter(results)
        for text in encoded:
            if not isinstance(text, TextError):
                yield self._finished(text, list(islice(rest, len(text.windows) or 1)), decoder, merge)

    def _finished(
        self, text: Tokens, results: Sequence[Any], decoder: Decoder[R], merge: Merge | None
    ) -> R | NopadError:
        bad = [each for each in results if isinstance(each, NopadError)]
        # That a window has no mask to fill matters only where none has one.
        if len(bad) == len(results) or not all(isinstance(error, TextError) for error in bad):
            return next((error for error in bad if not isinstance(error, TextError)), bad[0])
        first = next(each for each in results if not isinstance(each, NopadError))
        if isinstance(first, MaskFill):
            return cast(R, long_texts.merged_masks(text, results, self.mask_id) if text.windows else first)
        if not isinstance(first, tuple):  # a decoder of the caller's own, early
            return cast(R, first)
        logits, by = first
        if text.windows:
            unit = self.manifest.normalize
            logits = long_texts.merged(text, [rows for rows, _ in results], self.manifest.head, merge, unit=unit)
        return decoded(decoder, logits, text, by)

    def close(self) -> None:
        """Release the engines. Nothing runs afterwards."""
        self._closed = True
        self.chain.close()

    def require_open(self) -> None:
        """Raises `ClosedError` once closed."""
        if self._closed:
            raise ClosedError(f"the model of {self.bundle.path} is closed: load it again, or use it inside its `with`")

    def _pack(
        self,
        sequences: Sequence[Sequence[int]],
        token_types: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int] | None = None,
    ) -> PackedBatch:
        return pack(
            sequences,
            token_types,
            multiple=self.token_multiple,
            filler_id=self.manifest.pad_token_id,
            prompt_lengths=prompt_lengths,
        )


def listed(texts: Iterable[Text]) -> Iterable[Text]:
    """The same texts. Raises `UsageError` for a single string, which would be read letter by letter."""
    if isinstance(texts, str):
        raise UsageError("give a list of texts; put a single one in brackets: [text]")
    return texts


def pieces(encoded: Iterable[Tokens | TextError], decoder: Decoder[Any]) -> list[Piece]:
    """Every text that could be read, or in its place its windows."""
    return [
        Piece(part, decoder)
        for text in encoded
        if not isinstance(text, TextError)
        for part in ([window.tokens for window in text.windows] or [text])
    ]


def decoded(decoder: Decoder[R], logits: FloatArray, tokens: Tokens, by: AnsweredBy) -> R | TextError:
    """The answer, or the reason why the text has none."""
    try:
        return decoder(logits, tokens, by)
    except TextError as error:
        return error


def collect(
    encoded: Sequence[Tokens | TextError], outcomes: Iterable[R | NopadError], start: int
) -> Iterator[R | Failure]:
    """An answer or a `Failure` for each text of a window that begins with text number `start`.

    `outcomes`: of the texts that could be read, in order.
    """
    rest = iter(outcomes)
    for index, text in enumerate(encoded, start):
        outcome = text if isinstance(text, TextError) else next(rest)
        yield Failure(index=index, error=outcome) if isinstance(outcome, NopadError) else outcome
