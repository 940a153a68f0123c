"""A checkpoint's name -> its folder, downloaded if the name is one of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from nopad.model.checkpoint.folder_kind import name_file
from nopad.model.checkpoint.json_files import read_json
from nopad.model.checkpoint.sentence_transformers import module_files, transformer_folder
from nopad.model.errors import CheckpointError
from nopad.model.packages import install_hint

# Files beside an encoder's weights; modules.json names the other files of a sentence-transformers folder.
_ROOT = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "config_setfit.json",
    "adapter_config.json",
)
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model",
)  # fmt: skip
_INDEX = "model.safetensors.index.json"


def resolve_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: a local path as it is, any other name downloaded from the Hugging Face Hub.

    Downloads the configuration, then the files that it names, and nothing else: no pickles, no code, no other formats.
    Raises `CheckpointError`.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(name_file(path))
    if str(name).count("/") > 1 or str(name).startswith((".", "/", "~")):
        raise CheckpointError(f"no checkpoint at {path}: the folder does not exist")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(f"no folder {path}, and downloads from the Hub need: {install_hint('export')}") from None

    def fetch(files: Iterable[str], commit: str | None = None) -> Path:
        return Path(snapshot_download(str(name), revision=commit, allow_patterns=list(files)))

    try:
        return _download(fetch)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"no folder {path} here, and the Hugging Face Hub cannot provide {str(name)!r}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        ) from error


def _download(fetch: Callable[..., Path]) -> Path:
    """Configuration first, then the files that it names, all of one commit."""
    folder = fetch([*_ROOT, *_TOKENIZER, _INDEX])
    commit = folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else None
    home = PurePosixPath(transformer_folder(folder).relative_to(folder).as_posix())
    modules = module_files(folder)
    if str(home) != ".":
        modules += [(home / file).as_posix() for file in ("config.json", *_TOKENIZER, _INDEX)]
    if modules:
        fetch(modules, commit)
    weights = ["model.safetensors"]
    if (folder / home / _INDEX).is_file():
        shards = read_json(folder / home / _INDEX, dict).get("weight_map")
        weights = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
    if (folder / "adapter_config.json").is_file():
        weights.append("adapter_model.safetensors")
    fetch([(home / file).as_posix() for file in weights], commit)
    return folder
