"""Text -> token ids, with only the `tokenizers` library. Truncation is counted, never silent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from nopad.runtime.bundle import Bundle
from nopad.runtime.errors import BundleError, TextError, TooLongError
from nopad.runtime.types import Side, Text, Truncation

CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One text as the model reads it."""

    text: Text
    input_ids: list[int]
    token_type_ids: list[int]
    tokens: int  # of the whole text, special tokens included
    offsets: list[tuple[int, int]]  # character positions of each token
    special: list[int]  # 1 for [CLS], [SEP] and the like
    pieces: list[str]  # the tokens as text
    prompt_length: int = 0  # tokens of the prompt at the beginning
    second: int | None = None  # of a pair: the first token of its second text
    # Of a text that is left whole though it is too long:
    body: tuple[int, int] = (0, 0)  # its tokens from here to there are divided, the rest is in every window
    windows: tuple[Window, ...] = ()  # what the model reads instead

    @property
    def used(self) -> int:
        """Tokens that reach the model."""
        return len(self.input_ids)


class Window(NamedTuple):
    """A part of a text that the model reads at once."""

    tokens: Tokens
    start: int  # of the whole text's body, its tokens from here
    stop: int  # to there


class Words(NamedTuple):
    """What tells the pieces of a word apart from the beginning of the next (`TextEncoder.words`)."""

    marked: bool  # pieces inside a word bear a prefix, as WordPiece's ##
    unknown: int | None  # id of what the vocabulary cannot spell


def open_encoder(tokenizer: Path, max_length: int, *, vocab_size: int | None = None) -> TextEncoder:
    """The encoder of a `tokenizer.json`, configured by the `tokenizer_config.json` beside it. Raises `BundleError`.

    For a folder without a manifest: a checkpoint, or an unfinished bundle. `vocab_size` is the number of embeddings of
    the model; a text with a token id beyond them is refused.
    """
    config = tokenizer.with_name(CONFIG)
    return TextEncoder(tokenizer, max_length, config=config if config.is_file() else None, vocab_size=vocab_size)


def open_bundle_encoder(bundle: Bundle) -> TextEncoder:
    """The encoder of a bundle. A `tokenizer_config.json` that the manifest does not list is not read."""
    manifest = bundle.manifest
    config = str(PurePosixPath(manifest.tokenizer).with_name(CONFIG))
    return TextEncoder(
        bundle.file(manifest.tokenizer),
        manifest.max_length,
        config=bundle.file(config) if config in manifest.files else None,
        vocab_size=manifest.architecture.get("vocab_size"),
    )


@dataclass(frozen=True, kw_only=True)
class _Config:
    """Settings of `tokenizer_config.json` that `tokenizer.json` lacks."""

    side: Side = "right"  # which end of a long text is cut
    typed: bool = True  # the second text of a pair has token type 1
    split_special: bool = False  # a special token spelled out in a text is ordinary text


class TextEncoder:
    """A `tokenizer.json` at a fixed max length. Immutable after construction, so safe across threads.

    Its ids are those of transformers' `tokenizer(*text, truncation=True, max_length=max_length)`. Where transformers
    would exceed the max length, because the special tokens alone do, the text is refused.
    """

    def __init__(
        self,
        path: Path,
        max_length: int,
        *,
        config: Path | None = None,
        vocab_size: int | None = None,
    ) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} is not a tokenizer that this version of tokenizers reads: {error}") from None
        self.max_length = max_length
        self._otherwise: dict[Side | None, Tokenizer] = {}  # that cut at the other end, or nowhere; opened when asked
        self._vocab_size = vocab_size
        settings = _read_config(config) if config else _Config()
        self.truncation_side = settings.side
        self._typed = settings.typed
        self._tokenizer.encode_special_tokens = settings.split_special
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, direction=settings.side)
        added = self._tokenizer.get_added_tokens_decoder()
        self._vocabulary = vocab_size or self._tokenizer.get_vocab_size()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)

    def token_id(self, token: str) -> int | None:
        """Id of a token, None if the vocabulary lacks it."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def single_token(self, text: str) -> int | None:
        """Id of the token that the vocabulary spells so, else of the only token of this text; None if it has more."""
        if self._check(text):
            return None
        spelled = self.token_id(text)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids if spelled is None else [spelled]
        return ids[0] if len(ids) == 1 and ids[0] < self._vocabulary else None

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """The text that token ids spell. Raises `TextError` for an id outside the vocabulary."""
        outside = [token_id for token_id in ids if not 0 <= token_id < self._vocabulary]
        if outside:
            raise TextError(f"{outside[0]} is no token id of this model: its vocabulary ends at {self._vocabulary - 1}")
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def decode_token(self, token_id: int) -> str:
        """One token as readable text."""
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).strip()

    @cached_property
    def words(self) -> Words:
        """What tells pieces of words apart, as transformers reads it from the tokenizer."""
        model = self._tokenizer.model
        # A model may have one by name alone, or need none, while a text can spell it.
        names = (getattr(model, "unk_token", None), "[UNK]", "<unk>")
        unknown = next((self.token_id(name) for name in names if name and self.token_id(name) is not None), None)
        return Words(bool(getattr(model, "continuing_subword_prefix", None)), unknown)

    def spelled(self, pieces: Sequence[str]) -> str:
        """Tokens as one text, as transformers' `convert_tokens_to_string`."""
        decoder = self._tokenizer.decoder
        return " ".join(pieces) if decoder is None else str(decoder.decode(list(pieces)))

    def encode(
        self,
        texts: Sequence[Text],
        prompt: str = "",
        truncation: Truncation = "truncate",
        *,
        side: Side | None = None,
    ) -> list[Tokens | TextError]:
        """Tokens of each text, in order; for a text that has none, the error that says why.

        `prompt` is put before each text, and before the first of a pair. A text over the max length is cut at the end
        `side` (None: the tokenizer's own), refused if `truncation` is "error", or left whole if it is "window", for
        `nopad.runtime.long_texts` to divide.
        """
        out: list[Tokens | TextError | None] = [self._check(text) for text in texts]
        good = [index for index, error in enumerate(out) if error is None]
        whole = [_with_prompt(texts[index], prompt) for index in good]
        length = self.prompt_length(prompt)
        tokenizer = self._cutting(None if truncation == "window" else side or self.truncation_side)
        for index, text, encoding in zip(good, whole, tokenizer.encode_batch(whole), strict=True):
            out[index] = self._tokens(text, encoding, length, truncation)
        return [item for item in out if item is not None]

    def _cutting(self, side: Side | None) -> Tokenizer:
        """The tokenizer that cuts long texts at that end, or nowhere."""
        if side == self.truncation_side:
            return self._tokenizer
        if side not in self._otherwise:
            other = Tokenizer.from_str(self._tokenizer.to_str())
            other.encode_special_tokens = self._tokenizer.encode_special_tokens
            other.no_truncation()
            if side is not None:
                other.enable_truncation(self.max_length, direction=side)
            self._otherwise[side] = other  # of two threads that came at once, either will do
        return self._otherwise[side]

    def prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt as sentence-transformers counts them: a special token at its end is not the prompt's.

        (`_get_prompt_length` of its `base/modules/transformer.py`.)
        """
        if not prompt:
            return 0
        ids = self._tokenizer.encode(prompt).ids
        return len(ids) - (ids[-1] in self._special if ids else 0)

    def _check(self, text: object) -> TextError | None:
        parts = text if isinstance(text, tuple) else (text,)
        for part in parts:
            if not isinstance(part, str):
                return TextError(f"a text must be a str, or a pair of str, not {type(part).__name__}")
            if not part.strip():
                return TextError("the text is empty or only spaces: there is nothing to predict from")
            try:
                part.encode("utf-8")
            except UnicodeEncodeError:
                return TextError("the text holds a lone surrogate, so it is not valid Unicode; decode the input again")
        if isinstance(text, tuple) and len(text) != 2:
            return TextError(f"a pair must hold two texts, not {len(text)}")
        return None

    def _tokens(self, text: Text, encoding: Encoding, prompt_length: int, truncation: Truncation) -> Tokens | TextError:
        ids = encoding.ids
        total = len(ids)
        if not ids:
            return TextError("the tokenizer finds no token in the text (only control characters, perhaps)")
        # The library returns more where the special tokens alone exceed it.
        if total > self.max_length and truncation != "window":
            special = sum(encoding.special_tokens_mask)
            return TextError(
                f"the model's max length of {self.max_length} tokens has no room for this text beside its {special} "
                "special tokens; export the bundle with a larger --max-length"
            )
        if self._vocab_size is not None and max(ids) >= self._vocab_size:
            beyond = encoding.tokens[ids.index(max(ids))]
            return TextError(f"the text holds {beyond!r}, a token for which the model has no embedding; leave it out")
        if encoding.overflowing:
            total = self._count(text) + sum(encoding.special_tokens_mask)
            if truncation == "error":
                return TooLongError(
                    f"the text has {total} tokens, over the model's max length of {self.max_length}: shorten it, "
                    "or let it be truncated (truncation='truncate') or read in windows (truncation='window')",
                    tokens=total,
                )
        return Tokens(
            text=text,
            input_ids=ids,
            token_type_ids=encoding.type_ids if self._typed else [0] * len(ids),
            tokens=total,
            offsets=encoding.offsets,
            special=encoding.special_tokens_mask,
            pieces=encoding.tokens,
            prompt_length=prompt_length,
            second=_second(encoding) if isinstance(text, tuple) else None,
            body=_body(encoding, prompt_length) if total > self.max_length and truncation == "window" else (0, 0),
        )

    def _count(self, text: Text) -> int:
        """Tokens of the whole text, special tokens left out (a truncated pair's overflow cannot be added up)."""
        parts = text if isinstance(text, tuple) else (text,)
        total = 0
        for part in parts:
            encoding = self._tokenizer.encode(part, add_special_tokens=False)
            total += len(encoding.ids) + sum(len(rest.ids) for rest in encoding.overflowing)
        return total


def _second(encoding: Encoding) -> int | None:
    parts = encoding.sequence_ids
    return parts.index(1) if 1 in parts else None


def _body(encoding: Encoding, prompt_length: int) -> tuple[int, int]:
    """Where the text itself stands in its tokens, without special tokens and prompt; of a pair, the second text."""
    parts = encoding.sequence_ids
    last = max(part for part in parts if part is not None)
    start = parts.index(last)
    return (start if last else max(start, prompt_length)), len(parts) - parts[::-1].index(last)


def _with_prompt(text: Text, prompt: str) -> Text:
    if isinstance(text, tuple):
        return prompt + text[0], text[1]
    return prompt + text


def _read_config(path: Path) -> _Config:
    """Read `tokenizer_config.json`. A model without `token_type_ids` in `model_input_names` has no token types."""
    try:
        raw = json.loads(path.read_text("utf-8"))
        side, names = raw.get("truncation_side", "right"), raw.get("model_input_names")
        typed = names is None or "token_type_ids" in names
        split = raw.get("split_special_tokens") is True
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged ({error}); export the bundle again") from None
    if side not in ("left", "right"):
        raise BundleError(f"{path}: truncation_side is {side!r}, expected left or right")
    return _Config(side=side, typed=typed, split_special=split)
