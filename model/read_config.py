"""A `config.json` -> `EncoderConfig`. Pure: no torch, no files.

Both spellings of ModernBERT's configuration are read: transformers 4 (`global_attn_every_n_layers`,
`global_rope_theta`, `local_rope_theta`) and transformers 5 (`layer_types`, `rope_parameters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from nopad.model.config import ARCHITECTURES, EncoderConfig, Pooling
from nopad.model.errors import CheckpointError
from nopad.model.head import Task, json_object, read_head


def read_config(
    raw: Mapping[str, Any],
    *,
    task: Task | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
) -> EncoderConfig:
    """Read a transformers `config.json` (already parsed) into an `EncoderConfig`.

    `task`, `pooling` and `normalize` override what the file says. Raises `CheckpointError` for an unknown
    `model_type`, a task that cannot be told, or a feature that nopad does not have (named in the message).
    """
    model_type = raw.get("model_type")
    if model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} has no packed encoder; nopad has {' and '.join(ARCHITECTURES)}. "
            "Other architectures can be exported padded: nopad export --exporter optimum"
        )
    try:
        return (_read_modernbert if model_type == "modernbert" else _read_bert)(raw, task, pooling, normalize)
    except KeyError as error:
        raise CheckpointError(f"config.json: {error.args[0]!r} is missing") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"config.json: a value has the wrong type: {error}") from None


def _task_fields(raw: Mapping[str, Any], task: Task | None) -> dict[str, Any]:
    head = read_head(raw, task)
    return {
        "task": head.task,
        "labels": head.labels,
        "problem_type": head.problem_type,
        "pad_token_id": None if raw.get("pad_token_id") is None else int(raw["pad_token_id"]),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", True)),
        "initializer_range": float(raw.get("initializer_range", 0.02)),
    }


def _rope_theta(raw: Mapping[str, Any], layer_type: str, default: Any) -> float:
    parameters = json_object(raw, "rope_parameters")
    if parameters and not parameters.keys() & {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"config.json: rope_parameters has {', '.join(parameters)}, expected one object each for full_attention "
            "and sliding_attention; without rope_parameters, global_rope_theta and local_rope_theta are read"
        )
    # transformers lays rope_scaling over the entry of either kind.
    entry = {**json_object(parameters, layer_type), **json_object(raw, "rope_scaling")}
    for key in ("rope_type", "type"):
        if entry.get(key, "default") != "default":
            raise CheckpointError(
                f"config.json: rope_type {entry[key]!r} of {layer_type} is not supported, only 'default'"
            )
    return float(entry.get("rope_theta", default))


def _read_modernbert(
    raw: Mapping[str, Any], task: Task | None, pooling: Pooling | None, normalize: bool | None
) -> EncoderConfig:
    num_layers = int(raw["num_hidden_layers"])
    layer_types = raw.get("layer_types")
    if layer_types is None:
        every = int(raw.get("global_attn_every_n_layers", 3))
        if every < 1:
            raise CheckpointError(f"config.json: global_attn_every_n_layers must be positive, got {every}")
        local_layers = tuple(bool(i % every) for i in range(num_layers))
    else:
        unknown = set(layer_types) - {"full_attention", "sliding_attention"}
        if unknown:
            raise CheckpointError(f"config.json: unknown layer_types {sorted(unknown)}")
        local_layers = tuple(kind == "sliding_attention" for kind in layer_types)
    fields = _task_fields(raw, task)
    global_theta = _rope_theta(raw, "full_attention", raw.get("global_rope_theta", 160_000.0))
    local_theta = raw.get("local_rope_theta", 10_000.0)
    if local_theta is None:  # so in transformers 4; transformers 5 fails on it
        local_theta = global_theta
    if pooling is None:
        embeddings = fields["task"] == "embeddings"
        pooling = "mean" if embeddings else cast(Pooling, raw.get("classifier_pooling", "cls"))
    if pooling not in ("cls", "mean"):
        raise CheckpointError(f"pooling {pooling!r} is not ModernBERT's; it has cls and mean")
    return EncoderConfig(
        architecture="modernbert",
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=num_layers,
        num_heads=int(raw["num_attention_heads"]),
        max_position_embeddings=int(raw.get("max_position_embeddings", 8192)),
        norm_eps=float(raw.get("norm_eps", 1e-5)),
        norm_bias=bool(raw.get("norm_bias", False)),
        activation=str(raw.get("hidden_activation", "gelu")),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        classifier_bias=bool(raw.get("classifier_bias", False)),
        classifier_activation=str(raw.get("classifier_activation", "gelu")),
        decoder_bias=bool(raw.get("decoder_bias", True)),
        local_layers=local_layers,
        local_attention=int(raw.get("local_attention", 128)),
        global_rope_theta=global_theta,
        local_rope_theta=_rope_theta(raw, "sliding_attention", local_theta),
        embedding_dropout=float(raw.get("embedding_dropout", 0.0)),
        attention_dropout=float(raw.get("attention_dropout", 0.0)),
        mlp_dropout=float(raw.get("mlp_dropout", 0.0)),
        classifier_dropout=float(raw.get("classifier_dropout", 0.0)),
        pooling=pooling,
        normalize=bool(normalize),
        **fields,
    )


def _read_bert(
    raw: Mapping[str, Any], task: Task | None, pooling: Pooling | None, normalize: bool | None
) -> EncoderConfig:
    position_kind = raw.get("position_embedding_type", "absolute")
    if position_kind != "absolute":
        raise CheckpointError(f"config.json: position_embedding_type {position_kind!r} is not supported")
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise CheckpointError("config.json: a BERT decoder is not an encoder; is_decoder must be false")
    num_layers = int(raw["num_hidden_layers"])
    fields = _task_fields(raw, task)
    dropout = float(raw.get("hidden_dropout_prob", 0.1))
    classifier_dropout = raw.get("classifier_dropout")
    allowed: tuple[Pooling, ...]
    default: Pooling
    if fields["task"] == "embeddings":
        allowed, default = ("cls", "mean"), "mean"
    else:
        allowed, default = ("pooler",), "pooler"
    pooling = pooling or default
    if pooling not in allowed:
        raise CheckpointError(f"pooling {pooling!r} is not BERT's for {fields['task']}; it has {', '.join(allowed)}")
    return EncoderConfig(
        architecture="bert",
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=num_layers,
        num_heads=int(raw["num_attention_heads"]),
        max_position_embeddings=int(raw.get("max_position_embeddings", 512)),
        norm_eps=float(raw.get("layer_norm_eps", 1e-12)),
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        activation=str(raw.get("hidden_act", "gelu")),
        classifier_activation=str(raw.get("hidden_act", "gelu")),
        local_layers=(False,) * num_layers,
        type_vocab_size=int(raw.get("type_vocab_size", 2)),
        embedding_dropout=dropout,
        mlp_dropout=dropout,
        attention_dropout=float(raw.get("attention_probs_dropout_prob", 0.1)),
        classifier_dropout=dropout if classifier_dropout is None else float(classifier_dropout),
        pooling=pooling,
        normalize=bool(normalize),
        **fields,
    )
