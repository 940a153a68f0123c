"""The tokenizer of a checkpoint -> that of a bundle, and the lengths it reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nopad.model.errors import CheckpointError
from nopad.model.json_files import read_json
from nopad.runtime.errors import UsageError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# transformers writes this where a tokenizer has no limit of its own.
_NO_LIMIT = 10**9


def copy_tokenizer(source: Path, folder: Path, vocab_size: int) -> dict[str, Any]:
    """Copy the tokenizer into the bundle; returns `tokenizer_config.json`. Raises `CheckpointError`."""
    from tokenizers import Tokenizer

    path = source / "tokenizer.json"
    if path.is_file():
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    elif (source / "vocab.txt").is_file():
        import transformers  # an old BERT checkpoint: transformers builds the fast tokenizer from its vocabulary

        path = source / "vocab.txt"
        if not path.read_bytes().strip():
            raise CheckpointError(f"{path} is empty; copy the file again")
        try:
            transformers.BertTokenizerFast.from_pretrained(source).save_pretrained(folder)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} is damaged: {error}; copy the file again") from None
    else:
        raise CheckpointError(
            f"{source} has no tokenizer (tokenizer.json): copy it from the model it was trained from, or save it with "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)"
        )
    try:
        size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if size > vocab_size:
        raise CheckpointError(f"{path} has {size} entries, the model's vocab_size is {vocab_size}: not its tokenizer")
    config_path = folder / "tokenizer_config.json"
    config: dict[str, Any] = read_json(config_path, dict) if config_path.is_file() else {}
    return config


def lower_case(file: Path) -> None:
    """Make a bundle's tokenizer.json read every text in lower case, as sentence-transformers' `do_lower_case` does."""
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer.from_file(str(file))
    first = [normalizers.Lowercase()]
    own = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence(first if own is None else [*first, own])
    tokenizer.save(str(file))


def token_text(value: Any) -> str | None:
    """A special token as `tokenizer_config.json` stores it: a string, or an object with its `content`."""
    return value.get("content") if isinstance(value, Mapping) else value


def max_length_of(
    asked: int | None, tokenizer: Mapping[str, Any], positions: int, max_seq_length: int | None = None
) -> int:
    """The bundle's max length in tokens: as asked, else sentence-transformers' `max_seq_length`, else the tokenizer's
    own limit; at most the model's positions.
    """
    own = max_seq_length or tokenizer.get("model_max_length")
    limit = min(int(own), positions) if isinstance(own, int | float) and 3 <= own < _NO_LIMIT else positions
    if asked is None:
        return limit
    if not 3 <= asked <= positions:
        raise UsageError(f"--max-length {asked} is outside 3..{positions} (the model's max_position_embeddings)")
    return asked
