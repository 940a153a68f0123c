"""What a run starts from: an encoder (pre-trained with a new head, or random) and its tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.initialize import initialize
from nopad.model.checkpoint.json_files import read_json, read_raw_config
from nopad.model.checkpoint.load import Checkpoint, load_checkpoint
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.read_head import CROSS_ENCODER_KEYS
from nopad.model.checkpoint.save_pooling import check_pooling
from nopad.model.checkpoint.source import Source, open_source
from nopad.model.checkpoint.tokenizer import VOCABULARIES, open_tokenizer
from nopad.model.config import EncoderConfig
from nopad.model.encoder import build_encoder
from nopad.model.errors import CheckpointError
from nopad.model.head import Task
from nopad.runtime.errors import UsageError
from nopad.training.data import TrainingData
from nopad.training.recipe import Recipe


def open_model(
    model: str | None,
    data: TrainingData,
    *,
    from_scratch: Path | None,
    tokenizer: str | None,
    recipe: Recipe,
    base: str | None = None,
) -> tuple[Checkpoint, Any]:
    """The encoder to train (pre-trained with a new head, or random from a config file) and its tokenizer.

    `base` replaces the base that a LoRA adapter names.

    Raises `CheckpointError`, and `UsageError` unless one of `model` and `from_scratch` is given.
    """
    task, pooling, changes = data.task.head, data.task.pooling, _config_changes(data)
    torch.manual_seed(recipe.seed)
    if from_scratch is not None:
        checkpoint = _random_weights(from_scratch, task, pooling, changes)
        folder = from_scratch if from_scratch.is_dir() else from_scratch.parent
    elif model is not None:
        source = open_source(resolve_checkpoint(model), base)
        if recipe.lora is not None and source.adapter is not None:
            raise UsageError(
                f"--lora needs a whole checkpoint, and {model} is an adapter: nothing on disk would be the new one's "
                "base. Give what it was merged into (a run of nopad has that one folder up), or merge it by PEFT's "
                "merge_and_unload().save_pretrained(DIR)"
            )
        checkpoint = _pretrained(source, task, pooling, changes)
        folder = source.tokenizer
    else:
        raise UsageError("give one of --model and --from-scratch")
    return checkpoint, _open_tokenizer(
        resolve_checkpoint(tokenizer) if tokenizer else folder, checkpoint.config, recipe.max_length
    )


def _config_changes(data: TrainingData) -> dict[str, Any]:
    if not data.labels:
        return dict(data.task.config_changes)
    return {
        **data.task.config_changes,
        "id2label": {str(i): label for i, label in enumerate(data.labels)},
        "label2id": {label: i for i, label in enumerate(data.labels)},
        "problem_type": data.problem_type,
    }


def _random_weights(config: Path, task: Task, pooling: str | None, changes: dict[str, Any]) -> Checkpoint:
    raw = (read_raw_config(config) if config.is_dir() else read_json(config, dict)) | changes
    encoder = build_encoder(read_config(raw, task=task, pooling=pooling))
    initialize(encoder)
    return Checkpoint(raw_config=raw, encoder=encoder)


def _pretrained(source: Source, task: Task, pooling: str | None, changes: dict[str, Any]) -> Checkpoint:
    checkpoint = load_checkpoint(source, task=task, pooling=pooling, config_changes=changes, new_head=True)
    check_pooling(checkpoint.config)
    # The head is new: what the files say of the old one (a cross-encoder's activation) no longer applies.
    raw = {key: value for key, value in checkpoint.raw_config.items() if key not in (*CROSS_ENCODER_KEYS, "nopad")}
    return dataclasses.replace(checkpoint, raw_config={**raw, **changes})


def _open_tokenizer(source: Path, config: EncoderConfig, max_length: int) -> Any:
    """The tokenizer of a folder, cutting texts at `max_length` tokens. Raises `CheckpointError`."""
    if not any(path for pattern in VOCABULARIES for path in source.glob(pattern)):
        names = ", ".join(VOCABULARIES)
        raise CheckpointError(f"{source} has no tokenizer ({names}); name a folder that has one with --tokenizer")
    tokenizer = open_tokenizer(source)
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {source} has {len(tokenizer)} entries, the model's vocab_size is only "
            f"{config.vocab_size}: they do not belong together"
        )
    if max_length > config.max_position_embeddings:
        raise CheckpointError(
            f"--max-length {max_length} exceeds the model's max_position_embeddings {config.max_position_embeddings}"
        )
    tokenizer.model_max_length = max_length  # serving cuts texts as training did
    return tokenizer
