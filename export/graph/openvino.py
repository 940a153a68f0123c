"""The packed encoder for OpenVINO's CPU kernels: plain ONNX, arranged so that its compiler fuses what can be fused.

`openvino_attention` is a factory of `nopad.model.attention`. Everything between the projections has the heads first,
[heads, ...], so that OpenVINO makes one kernel of each attention (its snippets) and one of each rotation (its RoPE
operator), and copies nothing to transpose it; windows and sequences are gathered along one axis, since an index in
front of others becomes a transposition on either side. The stream may have any length. What each of these buys is in
docs/findings.md; the patterns are described by OpenVINO's `RoPEFusion` and `TokenizeMHASnippets` transformations.

`rearrange_openvino` splits the products that are taken apart, so that the activation of a gated MLP is computed by the
kernel of its product.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from nopad.export.graph.rewrite import drop_unread, split_weights
from nopad.model.attention import MASKED, Attend, PackedLayout, Rotary, local_bias, nearby_keys, picking, whole_blocks


def openvino_attention(layout: PackedLayout) -> Attend:
    """Attention for OpenVINO's graph. The stream needs no filler: a block that reaches beyond its end is masked."""
    total = layout.sequence_ids.shape[0]
    queries, whole = whole_blocks(layout)
    nearby = nearby_keys(whole).clamp(max=total - 1)  # [blocks, 3 * block]
    window_bias = local_bias(whole).transpose(0, 1)  # [1, blocks, block, 3 * block]
    key_bias = torch.where(layout.pad_index >= 0, 0.0, MASKED).unsqueeze(1).unsqueeze(0)  # [1, B, 1, S]
    gather = layout.pad_index.clamp(min=0)
    scatter = (layout.sequence_ids * layout.pad_index.shape[1] + layout.position_ids).clamp(min=0)
    angles: dict[bool, tuple[Tensor, Tensor]] = {}  # of local and of global layers, [1, 1, T, head_size]

    def attend(q: Tensor, k: Tensor, v: Tensor, *, local: bool, rope: Rotary = None, dropout: float = 0.0) -> Tensor:
        scale = q.shape[-1] ** -0.5
        # [1, heads, T, head_size] for the rotation; as v, with a Reshape on either side of its transposition, OpenVINO
        # 2026.4 takes it for shuffled channels where keys are shared by heads, and fails.
        q, k, v = *(x.unsqueeze(0).transpose(1, 2) for x in (q, k)), v.transpose(0, 1)
        if rope is not None:
            if local not in angles:
                cos, sin = (torch.cat([x, x], dim=-1).transpose(0, 1).unsqueeze(0) for x in rope)
                angles[local] = cos, sin
            q, k = (_rotated(x, *angles[local]) for x in (q, k))
        q, k = (q * scale).squeeze(0), k.squeeze(0)
        if local:
            out = _softmax_matmul(_take(q, queries), _take(k, nearby), _take(v, nearby), window_bias)
            return out.flatten(1, 2)[:, :total].transpose(0, 1)
        q, k, v = (_take(x, gather) for x in (q, k, v))
        out = _softmax_matmul(q, k, v, key_bias)
        return torch.index_select(out.flatten(1, 2), 1, scatter).transpose(0, 1)

    return picking(attend)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[1, heads, T, head_size], rotated, in the one form that OpenVINO recognises: the second half times -1."""
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat([second * -1.0, first], dim=-1) * sin


def _take(x: Tensor, index: Tensor) -> Tensor:
    """[heads, T, head_size] -> [heads, *index.shape, head_size]."""
    return torch.index_select(x, 1, index.flatten()).unflatten(1, index.shape)


def _softmax_matmul(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3) + bias).softmax(-1) @ v


def rearrange_openvino(model: ir.Model) -> None:
    """Rewrite a graph that was traced with `openvino_attention`, in place."""
    split_weights(model.graph)
    drop_unread(model.graph)
