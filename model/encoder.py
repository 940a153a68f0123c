"""The packed encoder: ModernBERT and BERT over one stream of tokens, with the heads nopad serves.

Parameter names are those of the matching transformers class (`modeling_modernbert.py`, `modeling_bert.py`), so a
state dict moves between the two without a mapping. Nothing here knows files, engines or export.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nopad.model.attention import Attend, AttentionFactory, PackedLayout, default_attention
from nopad.model.config import EncoderConfig

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
Rotary = tuple[Tensor, Tensor]


class Norm(nn.LayerNorm):
    """Layer norm computed in its own weights' dtype: kept in fp32, it stays exact inside an fp16 encoder."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; the dtype of `x` is kept."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def _norm(config: EncoderConfig) -> Norm:
    return Norm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def rotary(position_ids: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> Rotary:
    """Cosine and sine of the rotary angles, each [T, 1, head_size / 2]; angles in fp32 (RoFormer, arXiv:2104.09864)."""
    exponent = torch.arange(0, head_size, 2, dtype=torch.float, device=position_ids.device) / head_size
    angles = position_ids.unsqueeze(-1).float() * (1.0 / theta**exponent)
    return angles.cos().unsqueeze(1).to(dtype), angles.sin().unsqueeze(1).to(dtype)


def _rotate(x: Tensor, rope: Rotary) -> Tensor:
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    # Under autocast the angles are fp32 and x is not; attention kernels want q, k and v of one dtype.
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class _ModernBertEmbeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.norm = _norm(config)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.drop(self.norm(self.tok_embeddings(input_ids)))


class _ModernBertAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.shape = (config.num_heads, config.head_size)
        self.dropout = config.attention_dropout
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_drop = nn.Dropout(config.attention_dropout)

    def forward(self, x: Tensor, rope: Rotary, attend: Attend, local: bool) -> Tensor:
        q, k, v = (part.unflatten(-1, self.shape) for part in self.Wqkv(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        out = attend(_rotate(q, rope), _rotate(k, rope), v, local=local, dropout=dropout)
        return self.out_drop(self.Wo(out.flatten(1)))


class _ModernBertMLP(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.drop = nn.Dropout(config.mlp_dropout)
        self.act = _ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.Wi(x).chunk(2, dim=-1)
        return self.Wo(self.drop(self.act(value) * gate))


class _ModernBertLayer(nn.Module):
    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.local = config.local_layers[index]
        # The first layer follows the embedding norm directly, so it has none of its own.
        self.attn_norm = _norm(config) if index else nn.Identity()
        self.attn = _ModernBertAttention(config)
        self.mlp_norm = _norm(config)
        self.mlp = _ModernBertMLP(config)

    def forward(self, x: Tensor, rope: Rotary, attend: Attend) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rope, attend, self.local)
        return x + self.mlp(self.mlp_norm(x))


class ModernBertBackbone(nn.Module):
    """ModernBERT without a head (arXiv:2412.13663): pre-norm, gated MLP, rotary positions, local and global layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder_config = config
        self.embeddings = _ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(_ModernBertLayer(config, i) for i in range(config.num_layers))
        self.final_norm = _norm(config)

    def encode(self, input_ids: Tensor, token_type_ids: Tensor | None, layout: PackedLayout, attend: Attend) -> Tensor:
        """Hidden states of the stream, [T, hidden_size]; `token_type_ids` mean nothing to ModernBERT."""
        x = self.embeddings(input_ids)
        config = self.encoder_config
        global_rope = rotary(layout.position_ids, config.head_size, config.global_rope_theta, x.dtype)
        local_rope = rotary(layout.position_ids, config.head_size, config.local_rope_theta, x.dtype)
        for layer in self.layers:
            x = layer(x, local_rope if layer.local else global_rope, attend)
        return self.final_norm(x)


class _BertEmbeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = _norm(config)
        self.dropout = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(x + self.position_embeddings(position_ids)))


class _BertSelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.shape = (config.num_heads, config.head_size)
        self.dropout = config.attention_dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        q, k, v = (project(x).unflatten(-1, self.shape) for project in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, local=False, dropout=dropout).flatten(1)


class _BertResidual(nn.Module):
    """Dense, dropout, add, norm: the second half of BERT's attention and of its MLP."""

    def __init__(self, config: EncoderConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = _norm(config)
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class _BertAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = _BertSelfAttention(config)
        self.output = _BertResidual(config, config.hidden_size)


class _DenseActivation(nn.Module):
    def __init__(self, in_features: int, out_features: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class _BertLayer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        activation = _ACTIVATIONS[config.activation]
        self.attention = _BertAttention(config)
        self.intermediate = _DenseActivation(config.hidden_size, config.intermediate_size, activation)
        self.output = _BertResidual(config, config.intermediate_size)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = self.attention.output(self.attention.self(x, attend), x)
        return self.output(self.intermediate(x), x)


class _BertLayers(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_BertLayer(config) for _ in range(config.num_layers))


class BertBackbone(nn.Module):
    """BERT without a head (arXiv:1810.04805): absolute positions, token types, post-norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder_config = config
        self.embeddings = _BertEmbeddings(config)
        self.encoder = _BertLayers(config)
        if config.pooling == "pooler" and config.task in ("text-classification", "rerank"):
            self.pooler = _DenseActivation(config.hidden_size, config.hidden_size, torch.tanh)

    def encode(self, input_ids: Tensor, token_type_ids: Tensor | None, layout: PackedLayout, attend: Attend) -> Tensor:
        """Hidden states of the stream, [T, hidden_size]."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.embeddings(input_ids, token_type_ids, layout.position_ids)
        for layer in self.encoder.layer:
            x = layer(x, attend)
        return x


def pool(hidden: Tensor, layout: PackedLayout, pooling: str) -> Tensor:
    """One fp32 row per sequence, [B, hidden_size]: its first token (`cls`, `pooler`) or the mean of its tokens."""
    hidden = hidden.float()
    if pooling != "mean":
        return hidden[layout.pad_index[:, 0]]
    valid = (layout.pad_index >= 0).unsqueeze(-1).to(hidden.dtype)
    rows = hidden[layout.pad_index.clamp(min=0)] * valid
    return rows.sum(1) / valid.sum(1)


class PackedEncoder(nn.Module):
    """Common face of every head: packed stream in, fp32 `logits` out.

    `attention` replaces how attention is computed (see `nopad.model.attention`); None chooses by device and dtype.
    """

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__()
        self.encoder_config = config
        self.attention = attention

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        sequence_ids: Tensor,
        pad_index: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits of the stream (arguments: `nopad.model.packing`, int64).

        Returns fp32: [B, num_labels] for text-classification and rerank, [B, hidden_size] for embeddings,
        [T, num_labels] for token-classification, [T, vocab_size] for fill-mask.
        """
        layout = PackedLayout(
            position_ids=position_ids,
            sequence_ids=sequence_ids,
            pad_index=pad_index,
            half_window=self.encoder_config.half_window if any(self.encoder_config.local_layers) else -1,
            block=self.encoder_config.block,
        )
        dropout = self.training and self.encoder_config.attention_dropout > 0
        choose = self.attention or (lambda layout: default_attention(layout, self._compute_dtype(), dropout))
        attend = choose(layout)
        return self.logits(self.backbone().encode(input_ids, token_type_ids, layout, attend), layout)

    def _compute_dtype(self) -> torch.dtype:
        device = next(self.parameters()).device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return next(p.dtype for name, p in self.named_parameters() if "embeddings" in name)

    def backbone(self) -> ModernBertBackbone | BertBackbone:
        """The encoder below the head."""
        raise NotImplementedError

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """The head: hidden states [T, hidden_size] -> fp32 logits."""
        raise NotImplementedError


class _PredictionHead(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.act = _ACTIVATIONS[config.classifier_activation]
        self.norm = _norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x)))


class _ModernBertHead(PackedEncoder):
    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.model = ModernBertBackbone(config)
        self.head = _PredictionHead(config)
        self.drop = nn.Dropout(config.classifier_dropout)

    def backbone(self) -> ModernBertBackbone:
        return self.model


class ModernBertClassifier(_ModernBertHead):
    """ModernBertForSequenceClassification and ModernBertForTokenClassification."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Pool (unless the task is per token), head, classifier."""
        per_token = self.encoder_config.task == "token-classification"
        rows = hidden.float() if per_token else pool(hidden, layout, self.encoder_config.pooling)
        return self.classifier(self.drop(self.head(rows))).float()


class ModernBertMaskedLM(_ModernBertHead):
    """ModernBertForMaskedLM."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        if config.tie_word_embeddings:
            self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Scores of every vocabulary entry at every token."""
        return self.decoder(self.head(hidden.float()).to(self.decoder.weight.dtype)).float()


def _embedding(hidden: Tensor, layout: PackedLayout, config: EncoderConfig) -> Tensor:
    rows = pool(hidden, layout, config.pooling)
    return F.normalize(rows, dim=-1) if config.normalize else rows


class ModernBertEmbedder(PackedEncoder, ModernBertBackbone):
    """ModernBertModel, pooled to one vector per sequence."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        ModernBertBackbone.__init__(self, config)
        self.attention = attention

    def backbone(self) -> ModernBertBackbone:
        """Itself: the bare model has no head, so its weights carry no prefix."""
        return self

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """The embedding of each sequence."""
        return _embedding(hidden, layout, self.encoder_config)


class BertClassifier(PackedEncoder):
    """BertForSequenceClassification and BertForTokenClassification."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.bert = BertBackbone(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def backbone(self) -> BertBackbone:
        """The encoder below the head."""
        return self.bert

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Pooler (unless the task is per token), classifier."""
        if self.encoder_config.task == "token-classification":
            rows = hidden.float()
        else:
            rows = self.bert.pooler(pool(hidden, layout, "cls"))
        return self.classifier(self.dropout(rows)).float()


class _BertTransform(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = _ACTIVATIONS[config.activation]
        self.LayerNorm = _norm(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.act(self.dense(x)))


class _BertPredictions(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.transform = _BertTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = self.decoder.bias


class _BertMLMHead(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.predictions = _BertPredictions(config)


class BertMaskedLM(PackedEncoder):
    """BertForMaskedLM."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        super().__init__(config, attention)
        self.bert = BertBackbone(config)
        self.cls = _BertMLMHead(config)
        if config.tie_word_embeddings:
            self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def backbone(self) -> BertBackbone:
        """The encoder below the head."""
        return self.bert

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Scores of every vocabulary entry at every token."""
        head = self.cls.predictions
        return head.decoder(head.transform(hidden.float()).to(head.decoder.weight.dtype)).float()


class BertEmbedder(PackedEncoder, BertBackbone):
    """BertModel, pooled to one vector per sequence."""

    def __init__(self, config: EncoderConfig, attention: AttentionFactory | None = None) -> None:
        BertBackbone.__init__(self, config)
        self.attention = attention

    def backbone(self) -> BertBackbone:
        """Itself: the bare model has no head, so its weights carry no prefix."""
        return self

    def logits(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """The embedding of each sequence."""
        return _embedding(hidden, layout, self.encoder_config)


_HEADS: dict[str, dict[str, type[PackedEncoder]]] = {
    "modernbert": {"fill-mask": ModernBertMaskedLM, "embeddings": ModernBertEmbedder},
    "bert": {"fill-mask": BertMaskedLM, "embeddings": BertEmbedder},
}
_CLASSIFIERS: dict[str, type[PackedEncoder]] = {"modernbert": ModernBertClassifier, "bert": BertClassifier}


def build_encoder(config: EncoderConfig, attention: AttentionFactory | None = None) -> PackedEncoder:
    """The encoder for `config`, with PyTorch's random initial weights."""
    return _HEADS[config.architecture].get(config.task, _CLASSIFIERS[config.architecture])(config, attention)
