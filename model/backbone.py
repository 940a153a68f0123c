"""The layers below the head: ModernBERT and BERT over one packed stream of tokens.

Parameter names are those of the matching transformers class (`modeling_modernbert.py`, `modeling_bert.py`), so a
state dict moves between nopad and transformers without a mapping. Knows nothing of files, engines or export.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nopad.model.attention import Attend, PackedLayout, Rotary, pick
from nopad.model.config import ACTIVATIONS, EncoderConfig
from nopad.model.dropout import Dropout
from nopad.model.rope import rotary


class Norm(nn.LayerNorm):
    """Layer norm computed in its own weights' dtype: kept in fp32, it stays exact inside an fp16 encoder."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; the dtype of `x` is kept."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Linear(nn.Linear):
    """Linear layer computed in its own weights' dtype: a head's, whose rows are fp32 before and after it."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]; the dtype of `x` is kept."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function that `config.json` calls `name`."""
    function, arguments = ACTIVATIONS[name]
    return functools.partial(getattr(F, function), **arguments)


def layer_norm(config: EncoderConfig) -> Norm:
    """The norm that `config` asks for."""
    return Norm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


class _ModernBertEmbeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.norm = layer_norm(config)
        self.drop = Dropout(config.embedding_dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.drop(self.norm(self.tok_embeddings(input_ids)))


class _ModernBertAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.shape = (config.num_heads, config.head_size)
        self.dropout = config.attention_dropout
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_drop = Dropout(config.attention_dropout)

    def forward(self, x: Tensor, rope: Rotary, attend: Attend, local: bool, chosen: Tensor | None) -> Tensor:
        q, k, v = (part.unflatten(-1, self.shape) for part in self.Wqkv(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, local=local, rope=rope, dropout=dropout, chosen=chosen)
        return self.out_drop(self.Wo(out.flatten(1)))


class _ModernBertMLP(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.drop = Dropout(config.mlp_dropout)
        self.act = activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.Wi(x).chunk(2, dim=-1)
        return self.Wo(self.drop(self.act(value) * gate))


class _ModernBertLayer(nn.Module):
    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.local = config.local_layers[index]
        # The first layer follows the embedding norm directly, so it has none of its own.
        self.attn_norm = layer_norm(config) if index else nn.Identity()
        self.attn = _ModernBertAttention(config)
        self.mlp_norm = layer_norm(config)
        self.mlp = _ModernBertMLP(config)

    def forward(self, x: Tensor, rope: Rotary, attend: Attend, chosen: Tensor | None = None) -> Tensor:
        x = pick(x, chosen) + self.attn(self.attn_norm(x), rope, attend, self.local, chosen)
        return x + self.mlp(self.mlp_norm(x))


class ModernBertBackbone(nn.Module):
    """ModernBERT without a head (arXiv:2412.13663): pre-norm, gated MLP, rotary positions, local and global layers."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder_config = config
        self.embeddings = _ModernBertEmbeddings(config)
        self.layers = nn.ModuleList(_ModernBertLayer(config, i) for i in range(config.num_layers))
        self.final_norm = layer_norm(config)

    def encode(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        layout: PackedLayout,
        attend: Attend,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the stream, [T, hidden_size]; `token_type_ids` are ignored.

        Of the tokens `chosen` [R] alone, in that order, where they are given: the last layer computes no others after
        its attention.
        """
        x = self.embeddings(input_ids)
        config = self.encoder_config
        global_rope = rotary(layout, config.head_size, config.global_rope, x.dtype)
        local_rope = rotary(layout, config.head_size, config.local_rope, x.dtype)
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, local_rope if layer.local else global_rope, attend)
        return self.final_norm(last(x, local_rope if last.local else global_rope, attend, chosen))


class _BertEmbeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = layer_norm(config)
        self.dropout = Dropout(config.embedding_dropout)

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

    def forward(self, x: Tensor, attend: Attend, chosen: Tensor | None) -> Tensor:
        q, k, v = (project(x).unflatten(-1, self.shape) for project in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, local=False, dropout=dropout, chosen=chosen).flatten(1)


class _BertResidual(nn.Module):
    """Dense, dropout, add, norm: the second half of BERT's attention and of its MLP."""

    def __init__(self, config: EncoderConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = layer_norm(config)
        self.dropout = Dropout(config.mlp_dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class _BertAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = _BertSelfAttention(config)
        self.output = _BertResidual(config, config.hidden_size)


class _BertIntermediate(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class BertPooler(nn.Module):
    """The dense layer over a sequence's first token that BERT's classifiers read."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, hidden_size] in and out; the dtype of `rows` is kept."""
        return torch.tanh(self.dense(rows))


class _BertLayer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = _BertAttention(config)
        self.intermediate = _BertIntermediate(config)
        self.output = _BertResidual(config, config.intermediate_size)

    def forward(self, x: Tensor, attend: Attend, chosen: Tensor | None = None) -> Tensor:
        x = self.attention.output(self.attention.self(x, attend, chosen), pick(x, chosen))
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
            self.pooler = BertPooler(config)

    def encode(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        layout: PackedLayout,
        attend: Attend,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the stream, [T, hidden_size], or of the tokens `chosen` alone."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.embeddings(input_ids, token_type_ids, layout.position_ids)
        *layers, last = self.encoder.layer
        for layer in layers:
            x = layer(x, attend)
        hidden: Tensor = last(x, attend, chosen)
        return hidden
