"""The layers below the head of EuroBERT and UltraBERT: a Llama's without the causal mask, over one packed stream.

RMS norm, separate q, k and v with possibly fewer heads of keys and values, gated MLP, rotary positions. UltraBERT adds
windows: the configuration says which layers have a window, its width and their rotary positions. Parameter names are
those of `modeling_eurobert.py` and `modeling_ultrabert.py`, so a state dict moves between nopad and transformers
without a mapping.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nopad.model.attention import Attend, PackedLayout, Rotary, pick
from nopad.model.backbone import activation
from nopad.model.config import EncoderConfig
from nopad.model.rope import rotary


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv:1910.07467), computed in its own weight's dtype, as `backbone.Norm` is."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension; the dtype of `x` is kept."""
        exact = x.to(self.weight.dtype)
        # Divided by a square root, not multiplied by rsqrt: ONNX Runtime has one kernel for this form.
        return (exact / torch.sqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.size = config.head_size
        self.queries_per_key = config.num_heads // config.kv_heads
        self.dropout = config.attention_dropout
        wide, narrow = config.num_heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, wide, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=config.attention_bias)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, rope: Rotary, attend: Attend, local: bool, chosen: Tensor | None) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.size)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.queries_per_key > 1:  # each key and value head is repeated for the query heads that share it
            k, v = (heads.unsqueeze(2).expand(-1, -1, self.queries_per_key, -1).flatten(1, 2) for heads in (k, v))
        dropout = self.dropout if self.training else 0.0
        return self.o_proj(attend(q, k, v, local=local, rope=rope, dropout=dropout, chosen=chosen).flatten(1))


class _MLP(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act = activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class _Layer(nn.Module):
    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.local = config.local_layers[index]
        self.input_layernorm = RMSNorm(config)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = RMSNorm(config)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor, rope: Rotary, attend: Attend, chosen: Tensor | None = None) -> Tensor:
        x = pick(x, chosen) + self.self_attn(self.input_layernorm(x), rope, attend, self.local, chosen)
        return x + self.mlp(self.post_attention_layernorm(x))


class EuroBertBackbone(nn.Module):
    """EuroBERT (arXiv:2503.05500) or UltraBERT without a head."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder_config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(_Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config)

    def encode(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        layout: PackedLayout,
        attend: Attend,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the stream, [T, hidden_size], or of the tokens `chosen` alone; no `token_type_ids`."""
        x = self.embed_tokens(input_ids)
        config = self.encoder_config
        global_rope = rotary(layout, config.head_size, config.global_rope, x.dtype)
        local_rope = global_rope
        if any(config.local_layers):
            local_rope = rotary(layout, config.head_size, config.local_rope, x.dtype)
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, local_rope if layer.local else global_rope, attend)
        return self.norm(last(x, local_rope if last.local else global_rope, attend, chosen))
