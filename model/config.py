"""`EncoderConfig`: what the packed encoder is built from, read from any ModernBERT or BERT `config.json`.

Pure: no torch, no files. Both spellings of ModernBERT's configuration are read: transformers 4
(`global_attn_every_n_layers`, `global_rope_theta`, `local_rope_theta`) and transformers 5
(`layer_types`, `rope_parameters`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from nopad.model.errors import CheckpointError

Architecture = Literal["modernbert", "bert"]
Task = Literal["text-classification", "token-classification", "fill-mask", "embeddings", "rerank"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Pooling = Literal["cls", "mean", "pooler"]

TASKS: tuple[Task, ...] = get_args(Task)
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")

# The class name that transformers writes into config.json for each task.
_CLASS_SUFFIX: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "Model": "embeddings",
}
_CLASS_PREFIX: dict[Architecture, str] = {"modernbert": "ModernBert", "bert": "Bert"}


def attention_block(half_window: int) -> int:
    """Tokens of one block of local attention: the multiple of 64 that covers the half window."""
    return max(1, -(-half_window // 64)) * 64


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that fixes the packed encoder's shape and meaning.

    Sizes are counts of elements. `half_window` is how many tokens a local layer sees on each side
    (`local_attention // 2`, as in transformers' `modeling_modernbert.py`).
    """

    architecture: Architecture
    task: Task
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_position_embeddings: int
    norm_eps: float
    activation: str = "gelu"
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    classifier_bias: bool = False
    decoder_bias: bool = True
    classifier_activation: str = "gelu"
    tie_word_embeddings: bool = True
    local_layers: tuple[bool, ...] = ()
    local_attention: int = 128
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    type_vocab_size: int = 0
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    classifier_dropout: float = 0.0
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    pooling: Pooling = "cls"
    normalize: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make an encoder, in the words of `config.json`."""
        positive = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "the global rope_theta": self.global_rope_theta,
            "the local rope_theta": self.local_rope_theta,
        }
        if self.architecture == "bert":
            positive["type_vocab_size"] = self.type_vocab_size
        for name, value in positive.items():
            if not 0 < value <= 2**40:  # NaN is neither; far beyond it, PyTorch's own arithmetic overflows
                raise CheckpointError(f"config.json: {name} must be positive and at most 2**40, got {value}")
        if self.local_attention < 0:
            raise CheckpointError(f"config.json: local_attention must not be negative, got {self.local_attention}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise CheckpointError(
                f"config.json: pad_token_id {self.pad_token_id} is no token id; vocab_size is {self.vocab_size}"
            )
        if self.hidden_size % self.num_heads:
            raise CheckpointError(
                f"config.json: hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_heads}"
            )
        if self.architecture == "modernbert" and self.head_size % 2:
            raise CheckpointError(f"config.json: head size {self.head_size} is odd; rotary positions need pairs")
        if len(self.local_layers) != self.num_layers:
            raise CheckpointError(
                f"config.json: layer_types has {len(self.local_layers)} entries for num_hidden_layers {self.num_layers}"
            )
        for name in ("activation", "classifier_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                raise CheckpointError(
                    f"config.json: activation {getattr(self, name)!r} is not supported; "
                    f"known ones: {', '.join(ACTIVATIONS)}"
                )

    @property
    def head_size(self) -> int:
        """Elements of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_labels(self) -> int:
        """Width of the classification logits."""
        return len(self.labels)

    @property
    def half_window(self) -> int:
        """Tokens a local layer sees on each side of a token."""
        return self.local_attention // 2

    @property
    def block(self) -> int:
        """Tokens of one attention block. The stream's length is a multiple of it, but for the CPU graph."""
        return attention_block(self.half_window)

    @property
    def hf_class(self) -> str:
        """Name of the transformers class with the same weights, as in `architectures` of `config.json`."""
        task = "text-classification" if self.task == "rerank" else self.task
        suffix = next(s for s, t in _CLASS_SUFFIX.items() if t == task)
        return _CLASS_PREFIX[self.architecture] + suffix


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


def detect_task(raw: Mapping[str, Any]) -> Task:
    """Tell the task from `architectures`; a one-logit cross-encoder of sentence-transformers is `rerank`."""
    names = raw.get("architectures")
    for name in names if isinstance(names, list) else ():
        for suffix, task in _CLASS_SUFFIX.items():
            if str(name).endswith(suffix):
                cross_encoder = "sentence_transformers" in raw or "sbert_ce_default_activation_function" in raw
                if task == "text-classification" and len(_labels(raw)) == 1 and cross_encoder:
                    return "rerank"
                return task
    raise CheckpointError(
        f"config.json: architectures {raw.get('architectures')!r} does not tell the task; "
        f"name it with --task ({', '.join(TASKS)})"
    )


def _object(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {key} is a {type(value).__name__}, expected an object")
    return value or {}


def _labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    id2label = _object(raw, "id2label")
    if not id2label:
        # transformers leaves the default out of config.json: two labels, LABEL_0 and LABEL_1.
        return tuple(f"LABEL_{i}" for i in range(int(raw.get("num_labels") or 2)))
    by_id = {int(key): str(value) for key, value in id2label.items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise CheckpointError(f"config.json: id2label has ids {sorted(by_id)}, expected 0..{len(by_id) - 1}")
    labels = tuple(by_id[i] for i in range(len(by_id)))
    if len(set(labels)) != len(labels) or not all(label.strip() for label in labels):
        raise CheckpointError(f"config.json: id2label must name each label once, it has {', '.join(map(repr, labels))}")
    return labels


@dataclass(frozen=True, kw_only=True)
class Head:
    """What any checkpoint's `config.json` says of its head, whatever the architecture."""

    task: Task
    labels: tuple[str, ...]
    problem_type: ProblemType | None


def read_head(raw: Mapping[str, Any], task: Task | None = None) -> Head:
    """Task, labels and problem type of a `config.json`. Raises `CheckpointError`."""
    task = task or detect_task(raw)
    if task not in TASKS:
        raise CheckpointError(f"unknown task {task!r}; nopad has {', '.join(TASKS)}")
    labels = _labels(raw) if task in ("text-classification", "token-classification", "rerank") else ()
    problem_type: Any = raw.get("problem_type")
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise CheckpointError(f"config.json: unknown problem_type {problem_type!r}; known: {', '.join(PROBLEM_TYPES)}")
    if task == "rerank" and len(labels) != 1:
        raise CheckpointError(f"task rerank needs a checkpoint with one label, this one has {len(labels)}")
    if task != "text-classification":
        problem_type = None
    elif problem_type is None:
        # As transformers' pipeline scores: one logit gets a sigmoid, unless config.json says regression.
        problem_type = "multi_label_classification" if len(labels) == 1 else "single_label_classification"
    elif problem_type == "single_label_classification" and len(labels) == 1:
        raise CheckpointError(
            "config.json: problem_type single_label_classification needs two labels, this has one; "
            "multi_label_classification gives it a probability of its own"
        )
    return Head(task=task, labels=labels, problem_type=problem_type)


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
    parameters = _object(raw, "rope_parameters")
    if parameters and not parameters.keys() & {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"config.json: rope_parameters has {', '.join(parameters)}, expected one object each for full_attention "
            "and sliding_attention; without rope_parameters, global_rope_theta and local_rope_theta are read"
        )
    # transformers lays rope_scaling over the entry of either kind.
    entry = {**_object(parameters, layer_type), **_object(raw, "rope_scaling")}
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
