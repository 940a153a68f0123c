"""A `config.json` -> `EncoderConfig`. Pure: no torch, no files.

Both spellings of ModernBERT's configuration are read: transformers 4 (`global_attn_every_n_layers`,
`global_rope_theta`, `local_rope_theta`) and transformers 5 (`layer_types`, `rope_parameters`). EuroBERT's and
UltraBERT's first checkpoints come with code of their own (`auto_map`); their older keys are read as transformers 5
reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from nopad.model.checkpoint.read_head import json_object, read_head
from nopad.model.config import ARCHITECTURES, EncoderConfig, Pooling
from nopad.model.errors import CheckpointError
from nopad.model.head import BARE, Task
from nopad.model.rope_config import Rope, read_rope

LENGTHS = "lengths.json"  # beside config.json: how long the texts were that it was trained on, {"length": texts}
LAYER_KINDS = ("full_attention", "sliding_attention")


def read_config(
    raw: Mapping[str, Any],
    *,
    task: Task | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
) -> EncoderConfig:
    """Read a transformers `config.json` (already parsed) into an `EncoderConfig`.

    `task`, `pooling` and `normalize` override what the file says. Raises `CheckpointError` for an unknown
    `model_type`, a task that config.json does not name, or a feature that nopad does not have (named in the message).
    """
    model_type = raw.get("model_type")
    if model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} has no packed encoder; nopad has {', '.join(ARCHITECTURES)}. "
            "Other architectures are exported padded: nopad export --exporter padded"
        )
    try:
        return _READERS[model_type](raw, task, pooling, normalize)
    except KeyError as error:
        raise CheckpointError(f"config.json: {error.args[0]!r} is missing") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"config.json: a value has the wrong type: {error}") from None


def _task_fields(raw: Mapping[str, Any], task: Task | None, *, tied: bool = True) -> dict[str, Any]:
    head = read_head(raw, task)
    return {
        "task": head.task,
        "labels": head.labels,
        "problem_type": head.problem_type,
        "pad_token_id": None if raw.get("pad_token_id") is None else int(raw["pad_token_id"]),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", tied)),
        "initializer_range": float(raw.get("initializer_range", 0.02)),
    }


def _positions(raw: Mapping[str, Any], default: int) -> int:
    return int(raw.get("max_position_embeddings", default))


def _copied_into_rope(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Keys beside `rope_parameters` that transformers copies into it."""
    return {name: raw[name] for name in ("partial_rotary_factor",) if raw.get(name) is not None}


def _layer_ropes(raw: Mapping[str, Any], thetas: Mapping[str, Any], positions: int) -> dict[str, Rope]:
    """ModernBERT's rotary positions for each kind of layer."""
    parameters = json_object(raw, "rope_parameters")
    if parameters and not parameters.keys() & set(LAYER_KINDS):
        raise CheckpointError(
            f"config.json: rope_parameters has {', '.join(parameters)}, expected one object each for full_attention "
            "and sliding_attention; without rope_parameters, global_rope_theta and local_rope_theta are read"
        )
    scaling = json_object(raw, "rope_scaling")
    head_size = int(raw["hidden_size"]) // max(1, int(raw["num_attention_heads"]))
    if raw.get("head_dim") not in (None, head_size):  # transformers rotates heads of one size and projects to the other
        raise CheckpointError(
            f"config.json: head_dim {raw['head_dim']} is not hidden_size / num_attention_heads, {head_size}, as "
            "ModernBERT's heads are"
        )
    ropes = {}
    for layer, theta in thetas.items():
        # transformers merges rope_scaling into the entry of each kind, which has a rope_type by then.
        entry = {**(json_object(parameters, layer) or {"rope_type": "default"}), **scaling}
        older = scaling.get("type")
        if older not in (None, entry.get("rope_type", older)):
            raise CheckpointError(
                f"config.json: rope_scaling says type {older!r}, which transformers 4 follows and transformers 5 "
                f"ignores for ModernBERT; write it as rope_type, or delete rope_scaling"
            )
        # transformers reads `truncate` only beside the kinds of layer.
        entry = {**_copied_into_rope(raw), **entry, "truncate": parameters.get("truncate")}
        ropes[layer] = read_rope(entry, where=layer, theta=theta, positions=positions, head_size=head_size)
    return ropes


def _local_layers(layer_types: Sequence[str]) -> tuple[bool, ...]:
    unknown = set(layer_types) - set(LAYER_KINDS)
    if unknown:
        raise CheckpointError(f"config.json: unknown layer_types {sorted(unknown)}")
    return tuple(kind == "sliding_attention" for kind in layer_types)


def _read_modernbert(
    raw: Mapping[str, Any], task: Task | None, pooling: Pooling | None, normalize: bool | None
) -> EncoderConfig:
    num_layers = int(raw["num_hidden_layers"])
    if raw.get("layer_types") is None:
        every = int(raw.get("global_attn_every_n_layers", 3))
        if every < 1:
            raise CheckpointError(f"config.json: global_attn_every_n_layers must be positive, got {every}")
        local_layers = tuple(bool(i % every) for i in range(num_layers))
    else:
        local_layers = _local_layers(raw["layer_types"])
    fields = _task_fields(raw, task)
    positions = _positions(raw, 8192)
    global_theta = raw.get("global_rope_theta", 160_000.0)
    local_theta = raw.get("local_rope_theta", 10_000.0)
    if local_theta is None:  # as in transformers 4; transformers 5 fails on it
        own = json_object(json_object(raw, "rope_parameters"), "full_attention")
        local_theta = own.get("rope_theta", global_theta)
    ropes = _layer_ropes(raw, {"full_attention": global_theta, "sliding_attention": local_theta}, positions)
    window = raw.get("sliding_window")  # transformers 5 takes it for one side of the window
    if pooling is None:
        embeddings = fields["task"] in BARE
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
        max_position_embeddings=positions,
        norm_eps=float(raw.get("norm_eps", 1e-5)),
        norm_bias=bool(raw.get("norm_bias", False)),
        activation=str(raw.get("hidden_activation", "gelu")),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        classifier_bias=bool(raw.get("classifier_bias", False)),
        classifier_activation=str(raw.get("classifier_activation", "gelu")),
        decoder_bias=bool(raw.get("decoder_bias", True)),
        local_layers=local_layers,
        local_attention=int(raw.get("local_attention", 128) if window is None else 2 * window),
        global_rope=ropes["full_attention"],
        local_rope=ropes["sliding_attention"],
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
    if fields["task"] in BARE:
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
        max_position_embeddings=_positions(raw, 512),
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


def _eurobert_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What EuroBERT and UltraBERT share: the sizes, and the parts of a Llama-like layer."""
    heads, layers = int(raw["num_attention_heads"]), int(raw["num_hidden_layers"])
    head_dim, kv_heads = raw.get("head_dim"), raw.get("num_key_value_heads")
    return {
        "architecture": raw["model_type"],
        "vocab_size": int(raw["vocab_size"]),
        "hidden_size": int(raw["hidden_size"]),
        "intermediate_size": int(raw["intermediate_size"]),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": None if kv_heads is None else int(kv_heads),
        "head_dim": None if head_dim is None else int(head_dim),
        "activation": str(raw.get("hidden_act", "silu")),
        "attention_bias": bool(raw.get("attention_bias", False)),
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "attention_dropout": float(raw.get("attention_dropout", 0.0)),
    }


def _head_size(raw: Mapping[str, Any]) -> int:
    return int(raw.get("head_dim") or int(raw["hidden_size"]) // max(1, int(raw["num_attention_heads"])))


def _pooling(
    raw: Mapping[str, Any], task: Task, requested: str | None, known: Mapping[str, Pooling], default: str
) -> Any:
    """`requested`, or the default: mean for embeddings, what config.json says for a classifier."""
    if task in BARE:
        name, allowed = requested or "mean", ["cls", "mean"]
    else:
        stated = raw.get("classifier_pooling", default)
        name, allowed = requested or known.get(stated, stated), list(known.values())
    if name not in allowed:
        raise CheckpointError(
            f"pooling {name!r} is not {raw['model_type']}'s for {task}; it has {', '.join(dict.fromkeys(allowed))}"
        )
    return name


def _read_eurobert(
    raw: Mapping[str, Any], task: Task | None, pooling: Pooling | None, normalize: bool | None
) -> EncoderConfig:
    fields = _eurobert_fields(raw) | _task_fields(raw, task, tied=False)
    positions = _positions(raw, 8192)
    parameters = json_object(raw, "rope_scaling") or json_object(raw, "rope_parameters")
    if parameters.keys() & set(LAYER_KINDS):
        raise CheckpointError("config.json: rope_parameters of EuroBERT is one object for all layers, not one for each")
    entry = {**_copied_into_rope(raw), **parameters}
    # transformers prefers it where all layers share an object.
    if raw.get("original_max_position_embeddings") is not None:
        entry["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    rope = read_rope(
        entry,
        where="rope_parameters",
        theta=raw.get("rope_theta", 10_000.0),
        positions=positions,
        head_size=_head_size(raw),
    )
    older = raw.get("clf_pooling")  # of the code that came with EuroBERT's first checkpoints
    if older is not None and older != raw.get("classifier_pooling", "late"):
        raise CheckpointError(
            f"config.json: clf_pooling {older!r} is a key of EuroBERT's first code, and transformers reads "
            f"classifier_pooling alone; write it as classifier_pooling"
        )
    known: dict[str, Pooling] = {"bos": "cls", "mean": "mean", "late": "late"}
    return EncoderConfig(
        norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        max_position_embeddings=positions,
        local_layers=(False,) * fields["num_layers"],
        local_attention=0,
        global_rope=rope,
        local_rope=rope,
        pooling=_pooling(raw, fields["task"], pooling, known, "late"),
        normalize=bool(normalize),
        decoder_bias=bool(raw.get("mlp_bias", False)),  # as in transformers
        **fields,
    )


def _read_ultrabert(
    raw: Mapping[str, Any], task: Task | None, pooling: Pooling | None, normalize: bool | None
) -> EncoderConfig:
    fields = _eurobert_fields(raw) | _task_fields(raw, task, tied=False)
    layers, positions = fields["num_layers"], _positions(raw, 32_768)
    windows = raw.get("attention_windows")  # of the first checkpoints: a window for each layer
    window = int(raw.get("sliding_window", 128))
    kinds = raw.get("layer_types")
    if windows is not None:
        window = next((int(size) for size in windows if size), window)
        kinds = kinds or [LAYER_KINDS[1] if size else LAYER_KINDS[0] for size in windows]
    if kinds is None:  # every third layer is global
        kinds = [LAYER_KINDS[1] if (i + 1) % 3 else LAYER_KINDS[0] for i in range(layers)]
    if json_object(raw, "rope_scaling"):
        raise CheckpointError(
            "config.json: UltraBERT has no rope_scaling; it has rope_parameters for each kind of layer"
        )
    parameters, thetas = json_object(raw, "rope_parameters"), raw.get("rope_theta")
    if not parameters and thetas is not None:
        parameters = {kind: {"rope_theta": theta} for kind, theta in zip(kinds, thetas, strict=False)}
    if not parameters:
        parameters = {"full_attention": {"rope_theta": 2_560_000.0}, "sliding_attention": {"rope_theta": 10_000.0}}
    ropes = {}
    for kind in set(kinds) & set(LAYER_KINDS):
        entry = json_object(parameters, kind)
        if "rope_theta" not in entry:
            raise CheckpointError(f"config.json: rope_parameters lacks the rope_theta of {kind}")
        entry = {**_copied_into_rope(raw), **entry, "truncate": parameters.get("truncate")}
        ropes[kind] = read_rope(entry, where=kind, theta=None, positions=positions, head_size=_head_size(raw))
    known: dict[str, Pooling] = {"cls": "cls", "mean": "mean"}
    return EncoderConfig(
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=positions,
        local_layers=_local_layers(kinds),
        local_attention=2 * window,
        global_rope=ropes.get("full_attention", Rope(rope_theta=2_560_000.0)),
        local_rope=ropes.get("sliding_attention", Rope(rope_theta=10_000.0)),
        classifier_dropout=float(raw.get("classifier_dropout", 0.0)),
        prediction_head_size=int(raw.get("prediction_head_size", 768)),
        pooling=_pooling(raw, fields["task"], pooling, known, "cls"),
        normalize=bool(normalize),
        decoder_bias=False,
        **fields,
    )


def read_other(
    raw: Mapping[str, Any],
    *,
    task: Task | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    sizes: Mapping[str, int],
) -> EncoderConfig:
    """The configuration of an architecture that transformers runs: its head and sizes, nothing of its layers.

    `sizes`: hidden_size, vocab_size, num_layers, num_heads, intermediate_size, max_position_embeddings and
    pad_token_id, which each architecture spells in its own way. Raises `CheckpointError`.
    """
    fields = {**_task_fields(raw, task), **sizes}
    if pooling is not None and fields["task"] != "embeddings":
        raise CheckpointError(f"pooling {pooling!r} is for embeddings; a {raw.get('model_type')} pools in its own way")
    return EncoderConfig(
        architecture="other",
        norm_eps=0.0,
        local_layers=(False,) * sizes["num_layers"],
        pooling=pooling or "mean",
        normalize=bool(normalize),
        **fields,
    )


_READERS: dict[str, Callable[[Mapping[str, Any], Task | None, Pooling | None, bool | None], EncoderConfig]] = {
    "modernbert": _read_modernbert,
    "bert": _read_bert,
    "eurobert": _read_eurobert,
    "ultrabert": _read_ultrabert,
}
