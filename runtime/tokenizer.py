"""Text -> token ids, with the `tokenizers` library alone. Truncation is counted, never silent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from nopad.runtime.errors import BundleError, TextError
from nopad.runtime.types import Text, Truncation


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

    @property
    def used(self) -> int:
        """Tokens that reach the model."""
        return len(self.input_ids)


class TextEncoder:
    """A `tokenizer.json` at a fixed max length. Immutable after construction, so safe across threads."""

    def __init__(
        self, path: Path, max_length: int, truncation: Truncation = "truncate", *, config: Path | None = None
    ) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{path} is not a tokenizer that this version of tokenizers reads: {error}") from None
        self._max_length = max_length
        self._truncation = truncation
        side, self._typed = _read_config(config) if config else ("right", True)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length, direction=side)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)

    def token_id(self, token: str) -> int | None:
        """Id of a token, None if the vocabulary lacks it."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def decode_token(self, token_id: int) -> str:
        """One token as readable text."""
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).strip()

    def encode(self, texts: Sequence[Text], prompt: str = "") -> list[Tokens | TextError]:
        """Tokens of each text, or the error that says why it has none, in its place.

        `prompt` is put before each text, and before the first of a pair.
        """
        out: list[Tokens | TextError | None] = [self._check(text) for text in texts]
        good = [index for index, error in enumerate(out) if error is None]
        whole = [_prompted(texts[index], prompt) for index in good]
        length = self.prompt_length(prompt)
        for index, text, encoding in zip(good, whole, self._tokenizer.encode_batch(whole), strict=True):
            out[index] = self._tokens(text, encoding, length)
        return [item for item in out if item is not None]

    def prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt as sentence-transformers counts them: a special one at its end is not the prompt's.

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

    def _tokens(self, text: Text, encoding: Encoding, prompt_length: int) -> Tokens | TextError:
        total = len(encoding.ids)
        if encoding.overflowing:
            total = self._count(text) + sum(encoding.special_tokens_mask)
            if self._truncation == "error":
                return TextError(
                    f"the text has {total} tokens, over the model's max length of {self._max_length}: shorten it, "
                    "or let it be truncated (truncation='truncate')"
                )
        return Tokens(
            text=text,
            input_ids=encoding.ids,
            token_type_ids=encoding.type_ids if self._typed else [0] * len(encoding.ids),
            tokens=total,
            offsets=encoding.offsets,
            special=encoding.special_tokens_mask,
            pieces=encoding.tokens,
            prompt_length=prompt_length,
        )

    def _count(self, text: Text) -> int:
        """Tokens of the whole text without special ones (the overflow of a truncated pair cannot be added up)."""
        parts = text if isinstance(text, tuple) else (text,)
        total = 0
        for part in parts:
            encoding = self._tokenizer.encode(part, add_special_tokens=False)
            total += len(encoding.ids) + sum(len(rest.ids) for rest in encoding.overflowing)
        return total


def _prompted(text: Text, prompt: str) -> Text:
    if isinstance(text, tuple):
        return prompt + text[0], text[1]
    return prompt + text


def _read_config(path: Path) -> tuple[str, bool]:
    """What `tokenizer_config.json` says: which end of a long text is cut (`right` or `left`), and whether the second
    text of a pair has token types of its own (unless `model_input_names` leaves them out).
    """
    try:
        config = json.loads(path.read_text("utf-8"))
        side, names = config.get("truncation_side", "right"), config.get("model_input_names")
        typed = names is None or "token_type_ids" in names
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged ({error}); export the bundle again") from None
    if side not in ("left", "right"):
        raise BundleError(f"{path}: truncation_side is {side!r}, expected left or right")
    return side, typed
