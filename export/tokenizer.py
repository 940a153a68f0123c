"""The tokenizer of a checkpoint -> that of a bundle, and the lengths it reads.

A tokenizer is what transformers builds from a folder's files, not any single file: its classes replace the normaliser
and the template of `tokenizer.json`; `added_tokens.json` and `tokenizer_config.json` add tokens; old folders hold only
a vocabulary. So the bundle's `tokenizer.json` is written from the backend that transformers has built.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.model.errors import CheckpointError
from nopad.runtime.errors import UsageError

# transformers has 1e30 where a tokenizer has no limit of its own.
_NO_LIMIT = 10**9
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SHOWN = 5  # tokens that a message names


@dataclass(frozen=True, kw_only=True)
class BundleTokenizer:
    """What a bundle's manifest takes from its tokenizer."""

    limit: int | None  # its own max length in tokens
    pad_token_id: int | None  # None where it has none that the model has an embedding for
    mask_token: str | None


def write_tokenizer(source: Path, folder: Path, vocab_size: int | None, *, lower_case: bool = False) -> BundleTokenizer:
    """Write `tokenizer.json` and `tokenizer_config.json` of a checkpoint folder's tokenizer into a bundle's.

    `vocab_size` is how many embeddings the model has, None where that is not known. With `lower_case` every text is
    lower-cased, as with sentence-transformers' `do_lower_case`. Raises `CheckpointError`.
    """
    tokenizer = open_tokenizer(source)
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"the tokenizer of {source}, {type(tokenizer).__name__}, is Python code of transformers without a form "
            "that the tokenizers library runs (tokenizer.json), so a bundle cannot carry it"
        )
    backend = tokenizer.backend_tokenizer
    if vocab_size is not None:
        _check_vocabulary(tokenizer, source, vocab_size)
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(folder / "tokenizer.json"))
    if lower_case:
        _lower_case(folder / "tokenizer.json")
    text = json.dumps(_config_of(tokenizer), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    pad = tokenizer.pad_token_id
    return BundleTokenizer(
        limit=_limit(tokenizer.model_max_length),
        pad_token_id=pad if pad is not None and (vocab_size is None or 0 <= pad < vocab_size) else None,
        mask_token=_mask_token(tokenizer),
    )


def _config_of(tokenizer: Any) -> dict[str, Any]:
    """What `tokenizer.json` does not say. With the generic class, transformers opens the bundle's own files."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(tokenizer.model_input_names),
        "truncation_side": tokenizer.truncation_side,
        "padding_side": tokenizer.padding_side,
    }
    if getattr(tokenizer, "split_special_tokens", False):  # a special token in a text is text
        config["split_special_tokens"] = True
    if isinstance(getattr(tokenizer, "add_prefix_space", None), bool):  # transformers 4 applies it over tokenizer.json
        config["add_prefix_space"] = tokenizer.add_prefix_space
    limit = _limit(tokenizer.model_max_length)
    if limit is not None:
        config["model_max_length"] = limit
    for name in _SPECIAL:
        token = getattr(tokenizer, name, None)
        if token is not None:
            config[name] = str(token)
    return config


def _check_vocabulary(tokenizer: Any, source: Path, vocab_size: int) -> None:
    """Refuse a tokenizer that makes ids for which the model has no embedding.

    A padding token, or another special token outside the template, only occurs where a text spells it out; the runtime
    refuses that text. Fewer entries than embeddings are common: vocabularies are padded for speed.
    """
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= vocab_size}
    if not beyond:
        return
    template = set(tokenizer("a", "a").input_ids)
    special = {str(getattr(tokenizer, name, None)) for name in _SPECIAL}
    unused = {token for token, index in beyond.items() if token in special and index not in template}
    occurring = sorted(beyond.keys() - unused, key=lambda token: beyond[token])
    if not occurring:
        return
    shown = ", ".join(f"{token!r} (id {beyond[token]})" for token in occurring[:_SHOWN])
    more = f" and {len(occurring) - _SHOWN} more" if len(occurring) > _SHOWN else ""
    if all(token in tokenizer.get_added_vocab() for token in occurring):
        raise CheckpointError(
            f"the tokenizer of {source} has added tokens for which the model has no embedding: {shown}{more}; "
            f"vocab_size is {vocab_size}. The model was not enlarged when they were added: call "
            "model.resize_token_embeddings(len(tokenizer)) before training, or save the tokenizer without them"
        )
    raise CheckpointError(
        f"the tokenizer of {source} has {len(tokenizer)} entries, the model's vocab_size is {vocab_size}: not its "
        f"tokenizer ({shown}{more} have no embedding)"
    )


def _mask_token(tokenizer: Any) -> str | None:
    """The tokenizer's mask token; where its configuration names none, a usual mask token of its vocabulary."""
    if tokenizer.mask_token is not None:
        return str(tokenizer.mask_token)
    known = tokenizer.get_vocab()
    return next((token for token in ("[MASK]", "<mask>") if token in known), None)


def _limit(length: Any) -> int | None:
    return int(length) if isinstance(length, int | float) and 3 <= length < _NO_LIMIT else None


def _lower_case(file: Path) -> None:
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer.from_file(str(file))
    first = [normalizers.Lowercase()]
    own = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence(first if own is None else [*first, own])
    tokenizer.save(str(file))


def max_length_of(requested: int | None, limit: int | None, positions: int) -> int:
    """The bundle's max length in tokens: `requested`, else the folder's own `limit`, at most the model's positions."""
    if requested is None:
        return min(limit or positions, positions)
    if not 3 <= requested <= positions:
        raise UsageError(f"--max-length {requested} is outside 3..{positions} (the model's max_position_embeddings)")
    return requested
