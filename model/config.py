"""`EncoderConfig`: what the packed encoder is built from. Pure: no torch, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nopad.model.errors import CheckpointError
from nopad.model.head import BARE, ProblemType, Task
from nopad.model.packing import round_up
from nopad.model.rope_config import Rope

Packed = Literal["modernbert", "bert", "eurobert", "ultrabert"]
Architecture = Packed | Literal["other"]  # `other`: transformers itself runs it, padded
# How a text's tokens become one row: `pooler` in BERT's classifiers, `late` in EuroBERT's (the mean of every token's
# logits); the others are sentence-transformers' modes (its `modules/pooling.py`), concatenated where joined with "+".
Pooling = str
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

ARCHITECTURES: tuple[Packed, ...] = get_args(Packed)
# Activations of a Dense module: classes of torch.nn with their default arguments.
DENSE_ACTIVATIONS = (
    "Identity", "Tanh", "Sigmoid", "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish",
    "Softplus", "Softsign", "LogSigmoid", "Hardtanh", "Hardsigmoid", "Hardswish", "Tanhshrink",
)  # fmt: skip
# Activations as config.json names them: functions of torch.nn.functional, and their arguments.
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("gelu", {}),
    "gelu_new": ("gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("gelu", {"approximate": "tanh"}),
    "relu": ("relu", {}),
    "silu": ("silu", {}),
}

# The class name that transformers writes into config.json: a prefix for each architecture, a suffix for each task.
_CLASS_PREFIX: dict[Architecture, str] = {
    "modernbert": "ModernBert",
    "bert": "Bert",
    "eurobert": "EuroBert",
    "ultrabert": "Ultrabert",
    "other": "",
}
CLASS_SUFFIX: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "Model": "embeddings",
}


def attention_block(half_window: int) -> int:
    """Tokens of one block of local attention: the multiple of 64 that covers the half window."""
    return max(64, round_up(half_window, 64))


def half_window_of(architecture: Mapping[str, Any]) -> int | None:
    """`EncoderConfig.half_window` of a manifest's `architecture`; None where it has none, as in a padded bundle."""
    width = architecture.get("local_attention")
    return width // 2 if isinstance(width, int) else None


@dataclass(frozen=True, kw_only=True)
class EmbeddingModule:
    """A module of sentence-transformers before or after the pooling, with its names; sizes are counts of elements."""

    kind: Literal["Dense", "LayerNorm", "Normalize"]
    of_tokens: bool = False  # before the pooling, on every token's hidden state
    in_features: int = 0
    out_features: int = 0  # of LayerNorm: the same
    bias: bool = True
    activation: str = "Identity"  # of DENSE_ACTIVATIONS
    residual: bool = False  # Dense: adds its input (through a second matrix, where the sizes differ)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Everything that fixes the packed encoder's shape and meaning.

    Sizes are counts of elements. `half_window` is how many tokens a local layer sees on each side
    (`local_attention // 2`, as in transformers' `modeling_modernbert.py`). `num_kv_heads` and `head_dim` are None
    where they are `num_heads` and `hidden_size / num_heads`, as in every architecture but EuroBERT and UltraBERT.
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
    global_rope: Rope = Rope(rope_theta=160_000.0)
    local_rope: Rope = Rope(rope_theta=10_000.0)
    num_kv_heads: int | None = None
    head_dim: int | None = None
    prediction_head_size: int = 768  # UltraBERT's, for fill-mask
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
    # Embeddings only: from pooling to the vector, in this order.
    include_prompt: bool = True  # whether a prompt's tokens are pooled
    modules: tuple[EmbeddingModule, ...] = ()
    truncate_dim: int | None = None  # only the first elements are kept
    normalize: bool = False  # at the end: unit length

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make an encoder, in the words of `config.json`."""
        positive = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "num_key_value_heads": 1 if self.num_kv_heads is None else self.num_kv_heads,
            "head_dim": 1 if self.head_dim is None else self.head_dim,
            "prediction_head_size": self.prediction_head_size,
        }
        if self.architecture == "bert":
            positive["type_vocab_size"] = self.type_vocab_size
        for name, value in positive.items():
            if not 0 < value <= 2**40:  # refuses NaN, too; far beyond it, PyTorch's own arithmetic overflows
                raise CheckpointError(f"config.json: {name} must be positive and at most 2**40, got {value}")
        if self.local_attention < 0:
            raise CheckpointError(f"config.json: local_attention must not be negative, got {self.local_attention}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise CheckpointError(
                f"config.json: pad_token_id {self.pad_token_id} is not a token id; vocab_size is {self.vocab_size}"
            )
        if self.hidden_size % self.num_heads:  # transformers refuses it whatever head_dim is
            raise CheckpointError(
                f"config.json: hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_heads}"
            )
        if self.num_heads % self.kv_heads:
            raise CheckpointError(
                f"config.json: num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads "
                f"{self.kv_heads}"
            )
        if self.architecture not in ("bert", "other") and self.head_size % 2:
            raise CheckpointError(f"config.json: head size {self.head_size} is odd; rotary positions need pairs")
        if len(self.local_layers) != self.num_layers:
            raise CheckpointError(
                f"config.json: layer_types has {len(self.local_layers)} entries for num_hidden_layers {self.num_layers}"
            )
        for name in ("activation", "classifier_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                raise CheckpointError(
                    f"config.json: activation {getattr(self, name)!r} is not supported; known: {', '.join(ACTIVATIONS)}"
                )

    @property
    def head_size(self) -> int:
        """Elements of one attention head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: fewer than query heads where several of these share a head."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def embedding_size(self) -> int:
        """Elements of an embedding."""
        size = self.hidden_size
        for module in (module for module in self.modules if module.of_tokens):
            size = module.out_features or size
        size *= len(self.pooling.split("+"))
        for module in (module for module in self.modules if not module.of_tokens):
            size = module.out_features or size
        return min(size, self.truncate_dim or size)

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
        """Tokens of one attention block. The stream's length is a multiple of it, except in the CPU graph."""
        return attention_block(self.half_window)

    @property
    def hf_class(self) -> str:
        """Name of the transformers class with the same weights, as in `architectures` of `config.json`."""
        task = "text-classification" if self.task == "rerank" else "embeddings" if self.task in BARE else self.task
        suffix = next(s for s, t in CLASS_SUFFIX.items() if t == task)
        return _CLASS_PREFIX[self.architecture] + suffix
