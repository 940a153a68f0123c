"""How an embedding model pools -> the files that say so: sentence-transformers' own, which nopad reads as well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nopad.model.checkpoint.sentence_transformers import MODEL_CONFIG, MODULES
from nopad.model.config import EncoderConfig
from nopad.model.errors import CheckpointError

_POOLING = "1_Pooling/config.json"
POOLING_FILES = frozenset({MODULES, MODEL_CONFIG, _POOLING})
# The spelling of versions before 6, which 6 reads as well.
_MODES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
POOLINGS = tuple(_MODES)


def check_pooling(config: EncoderConfig) -> None:
    """Refuse an embedding model that `write_pooling` cannot write. Raises `CheckpointError`."""
    if config.task == "embeddings" and (config.modules or config.pooling not in POOLINGS):
        kinds = ", ".join(module.kind for module in config.modules) or f"pooling {config.pooling}"
        raise CheckpointError(
            f"an embedding model with {kinds} is not trained: nopad trains the pooling mean or cls, and Normalize at "
            "the end. Name the transformer's own folder, or another --pooling"
        )


def write_pooling(
    config: EncoderConfig, folder: Path, *, prompts: Mapping[str, str], default_prompt_name: str | None
) -> None:
    """Write `modules.json` and the files of its modules beside the transformer's own in `folder`."""
    names = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] * config.normalize)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(names)
    ]
    pooling = {"word_embedding_dimension": config.hidden_size, "include_prompt": config.include_prompt}
    modes = {key: mode == config.pooling for mode, key in _MODES.items()}
    _write(folder / MODULES, modules)
    _write(folder / _POOLING, pooling | modes)
    about = {"similarity_fn_name": "cosine", "truncate_dim": config.truncate_dim}
    _write(folder / MODEL_CONFIG, {**about, "prompts": dict(prompts), "default_prompt_name": default_prompt_name})


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
