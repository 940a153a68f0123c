"""The tokenizer of a checkpoint folder, opened with transformers, and saved for transformers 4 and 5."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nopad.model.checkpoint.json_files import read_json
from nopad.model.errors import CheckpointError
from nopad.model.packages import importable

# The class of a plain tokenizer.json: transformers 5 writes the new name and reads both, transformers 4 knows the old.
_NEW_CLASS, _OLD_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
_FEWEST = 3  # tokens of the smallest vocabulary that says anything
# Files that hold a vocabulary; a SentencePiece model has many names, all of them `*.model`.
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder as transformers opens it, whichever version wrote it.

    Code in the folder is never run (`auto_map`): transformers' own class is taken, or the folder is refused.
    Raises `CheckpointError`.
    """
    import transformers

    path = _vocabulary_of(folder)
    config_path = folder / "tokenizer_config.json"
    config: dict[str, Any] = read_json(config_path, dict) if config_path.is_file() else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _with_vocabulary(_open(transformers.AutoTokenizer, folder), folder)
        except CheckpointError:
            raise
        except Exception as error:  # transformers passes on whatever its readers raise
            fallback = _own_class(config, path)
            try:
                if fallback is not None:
                    return _with_vocabulary(_open(fallback, folder), folder)
            except CheckpointError:
                raise
            except Exception:  # the first error says more
                pass
            raise CheckpointError(_reason(folder, path, config, error)) from error


def _open(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _vocabulary_of(folder: Path) -> Path:
    """The file that the tokenizer is read from. Where there is none, transformers 5 would make up an empty one."""
    for pattern in VOCABULARIES:
        for path in sorted(folder.glob(pattern)):
            if not path.read_bytes().strip():
                raise CheckpointError(f"{path} is empty; copy the file again")
            return path
    raise CheckpointError(
        f"{folder} has no tokenizer (tokenizer.json): copy it from the model it was trained from, or save it with "
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)"
    )


def _own_class(config: Mapping[str, Any], path: Path) -> Any:
    """The transformers class that `tokenizer_config.json` names, for folders that AutoTokenizer does not open.

    transformers 5 goes by the model's type, and its class may miss the vocabulary file of another; transformers 4 knows
    no class that is new in version 5 or came with the folder, but its plain class reads their tokenizer.json.
    """
    import transformers

    name = config.get("tokenizer_class")
    if not isinstance(name, str) or config.get("auto_map"):
        return None
    plain = name.removesuffix("Fast")
    for class_name in (f"{plain}Fast", plain):
        kind = getattr(transformers, class_name, None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizerBase):
            return kind
    return transformers.PreTrainedTokenizerFast if path.name == "tokenizer.json" else None


def _with_vocabulary(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer, unless it knows hardly more than its special tokens: transformers has not read the vocabulary.

    transformers 5 makes up a vocabulary where its class finds no file, transformers 4 reads any as lines of text.
    """
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < _FEWEST:
        raise CheckpointError(
            f"transformers finds no vocabulary for {type(tokenizer).__name__} in {folder}, only special tokens; copy "
            "the tokenizer's files again, or save them with AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)"
        )
    return tokenizer


def _reason(folder: Path, path: Path, config: Mapping[str, Any], error: Exception) -> str:
    """What is wrong with the folder, in words that its owner can act on."""
    import transformers

    if config.get("auto_map") and "custom code" in str(error):
        return (
            f"the tokenizer of {folder} is Python code of its own (auto_map in tokenizer_config.json), which nopad "
            "does not run; save a tokenizer.json for it, or name one of transformers' classes as tokenizer_class"
        )
    if path.suffix == ".model" and not importable("sentencepiece"):
        return f"{path} is a SentencePiece model, which needs its library: pip install sentencepiece"
    if _damaged(path):
        return f"{path} is damaged: {error}; copy the file again"
    class_name = config.get("tokenizer_class")
    kind = f" for its tokenizer_class {class_name}" if class_name else ""
    lines = str(error).strip().splitlines()
    return (
        f"transformers {transformers.__version__} cannot open the tokenizer of {folder} from {path.name}{kind}: "
        f"{lines[0] if lines else repr(error)}; save it with AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)"
    )


def _damaged(path: Path) -> bool:
    """Whether the library that reads the file fails on it too."""
    try:
        if path.suffix == ".model":
            import sentencepiece

            sentencepiece.SentencePieceProcessor(model_file=str(path))
        elif path.suffix == ".json" and path.name == "tokenizer.json":
            from tokenizers import Tokenizer

            Tokenizer.from_file(str(path))
        else:
            text = path.read_text("utf-8")
            if path.suffix == ".json":
                json.loads(text)
    except Exception:  # tokenizers and sentencepiece raise no narrower class
        return True
    return False


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer of transformers so that transformers 4 and 5 both open it."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    raw = read_json(path, dict)
    if raw.get("tokenizer_class") == _NEW_CLASS:
        path.write_text(json.dumps(raw | {"tokenizer_class": _OLD_CLASS}, indent=2, ensure_ascii=False) + "\n", "utf-8")
