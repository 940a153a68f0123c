"""The seam between the encoder and how attention is computed.

The encoder asks an `AttentionFactory` once per forward for an `Attend` bound to the batch's layout, then calls it
in every layer with q, k, v of shape [T, heads, head_size] and the rotary angles. Implementations here:

- `sdpa_attention`: runs everywhere. Local layers block by block, global layers per sequence.
- `varlen_attention`: CUDA Ampere and newer, `torch.nn.attention.varlen` with its window.
- `graph_attention`: the same arithmetic in operators that export to plain ONNX (MatMul, Softmax, Gather).

`nopad.export.graph.cpu` has a factory for ONNX Runtime's own CPU operators.

Local attention, half window w, block b >= w: the stream is cut into blocks of b tokens; queries of a block meet the
keys of the previous, own and next block, allowed where |i - j| <= w and both tokens belong to the same sequence.
Exact, linear in T. (Window definition: transformers `modeling_modernbert.py`.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nopad.model.dropout import drop


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """Where each token of the stream belongs (see `nopad.model.packing`), as tensors on one device."""

    position_ids: Tensor  # [T] int64
    sequence_ids: Tensor  # [T] int64, -1 for filler
    pad_index: Tensor  # [B, S] int64, -1 past a sequence's end
    half_window: int
    block: int
    prompt_lengths: Tensor | None = None  # [B] int64, tokens that are not pooled (embeddings alone)
    first_tokens: bool = False  # the hidden states that the head gets are those of each sequence's first token alone


# Added to the scores of masked keys: within fp16's range (largest 65504), and still zeroes a softmax term.
MASKED = -30000.0
# Cosine and sine of the rotary angles, each [T, 1, head_size / 2]; None where positions are embedded (BERT).
Rotary = tuple[Tensor, Tensor] | None


def pick(x: Tensor, chosen: Tensor | None) -> Tensor:
    """Rows `chosen` [R] of [T, ...], in that order; all of them for None."""
    return x if chosen is None else x[chosen]


def rotate(x: Tensor, rope: Rotary) -> Tensor:
    """Rotary positions applied to q or k, [T, heads, head_size] (RoFormer, arXiv:2104.09864; halves, not pairs)."""
    if rope is None:
        return x
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    # Under autocast the angles are fp32 and x is not; attention kernels want q, k and v of one dtype.
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def turning() -> Callable[[Tensor, Rotary], Tensor]:
    """`rotate` up to rounding, for running and not for graphs: in fp32 on a CPU half the time, gradients too."""
    whole = functools.cache(_whole_heads)  # the same angles come in every layer

    def turn(x: Tensor, rope: Rotary) -> Tensor:
        if rope is None or x.device.type != "cpu" or x.dtype != torch.float32 or rope[0].dtype != torch.float32:
            return rotate(x, rope)
        turned = _Turn.apply(x, *whole(*rope))
        assert isinstance(turned, Tensor)
        return turned

    return turn


def _whole_heads(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine for each number of a head, [T, 1, head_size]."""
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class _Turn(torch.autograd.Function):
    """Whole heads times the angles: PyTorch is slow at many rows of half a head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _swapped(x).mul_(sin).addcmul_(x, cos)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _swapped(gradient * sin).addcmul_(gradient, cos), None, None


def _swapped(x: Tensor) -> Tensor:
    """A copy whose heads have their halves in the other order."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([second, first], dim=-1)


class Attend(Protocol):
    """Attention bound to one layout."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        local: bool,
        rope: Rotary = None,
        dropout: float = 0.0,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Attend within sequences (and within the window where `local`); [T, heads, head_size] in and out.

        q and k come as projected: `rope` is applied to them first. Of the tokens `chosen` [R] alone, in that order,
        where they are given: [R, heads, head_size].
        """
        ...


AttentionFactory = Callable[[PackedLayout], Attend]


def picking(attend: Callable[..., Tensor]) -> Attend:
    """`chosen` for an attention that has no shorter way to few tokens: all are computed, and theirs taken."""

    def few(q: Tensor, k: Tensor, v: Tensor, *, chosen: Tensor | None = None, **rest: Any) -> Tensor:
        return pick(attend(q, k, v, **rest), chosen)

    return few


def default_attention(layout: PackedLayout, dtype: torch.dtype, head_size: int, dropout: bool = False) -> Attend:
    """Choose for this device, dtype and head: flash attention where the hardware has it, SDPA elsewhere.

    `dropout` says that attention weights will be dropped, which `varlen_attn` cannot do.
    """
    device = layout.position_ids.device
    half = dtype in (torch.float16, torch.bfloat16)
    # FlashAttention-2 needs such a head and compute capability 8.0; a T4 (7.5) gets SDPA.
    fits = half and not dropout and head_size % 8 == 0 and head_size <= 256
    if device.type == "cuda" and fits and torch.cuda.get_device_capability(device) >= (8, 0):
        return varlen_attention(layout)
    return sdpa_attention(layout)


def local_bias(layout: PackedLayout) -> Tensor:
    """`local_mask` as a bias added to the scores: 0 or -30000, fp32 [T / block, 1, block, 3 * block]."""
    return torch.where(local_mask(layout), 0.0, MASKED).unsqueeze(1)


def local_mask(layout: PackedLayout) -> Tensor:
    """Who may attend to whom in local layers: bool [T / block, block, 3 * block]."""
    block = layout.block
    nearby = _nearby(layout)
    inside = (nearby >= 0) & (nearby < layout.sequence_ids.shape[0])
    keys = layout.sequence_ids[nearby_keys(layout)]
    queries = layout.sequence_ids.reshape(-1, block)
    offset = torch.arange(block, device=queries.device)
    distance = torch.arange(-block, 2 * block, device=queries.device).unsqueeze(0) - offset.unsqueeze(1)
    same = queries.unsqueeze(2) == keys.unsqueeze(1)
    return same & inside.unsqueeze(1) & (distance.abs() <= layout.half_window)


def _nearby(layout: PackedLayout) -> Tensor:
    """Stream positions of each block's keys, [T / block, 3 * block]; out of range beyond the stream's ends."""
    stream = torch.arange(layout.sequence_ids.shape[0], device=layout.sequence_ids.device)
    offset = torch.arange(-layout.block, 2 * layout.block, device=stream.device)
    return stream.reshape(-1, layout.block)[:, :1] + offset


def nearby_keys(layout: PackedLayout) -> Tensor:
    """Stream positions of each block's keys, int64 [T / block, 3 * block], clamped to the stream's ends."""
    return _nearby(layout).clamp(min=0).clamp(max=layout.sequence_ids.shape[0] - 1)


def whole_blocks(layout: PackedLayout) -> tuple[Tensor, PackedLayout]:
    """A stream of any length in whole blocks, for local layers: the last may reach beyond it, as sequence -1.

    Returns the stream position of each query, int64 [blocks, block], those beyond the end clamped to it, and the layout
    of the longer stream.
    """
    total, block = layout.sequence_ids.shape[0], layout.block
    places = (torch.arange((total + block - 1) // block) * block).unsqueeze(1) + torch.arange(block)
    queries = places.clamp(max=total - 1)
    filled = torch.where(places < total, layout.sequence_ids[queries], -1).flatten()
    return queries, dataclasses.replace(layout, sequence_ids=filled)


class _Neighbours(torch.autograd.Function):
    """[T, heads, head_size] -> [T / block, 3 * block, heads, head_size]: each block between its two neighbours.

    A view of the padded stream, where slices and `cat` would copy it three times, and once more backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: int) -> Tensor:
        padded = F.pad(x, (0, 0, 0, 0, block, block))
        size, (token, head, _) = (x.shape[0] // block, 3 * block, *x.shape[1:]), padded.stride()
        return padded.as_strided(size, (block * token, token, head, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        before, own, after = gradient.chunk(3, dim=1)
        out = own.clone(memory_format=torch.contiguous_format)
        out[:-1] += before[1:]
        out[1:] += after[:-1]
        return out.flatten(0, 1), None


def sdpa_attention(layout: PackedLayout) -> Attend:
    """PyTorch's own kernels on any device: block-local SDPA, and SDPA per sequence without padding."""
    if layout.sequence_ids.shape[0] % layout.block:
        raise ValueError(
            f"a stream of {layout.sequence_ids.shape[0]} tokens is not a multiple of {layout.block}; see pack"
        )
    bias = local_bias(layout) if layout.half_window >= 0 else None
    lengths: list[int] = (layout.pad_index >= 0).sum(1).tolist()
    turn = turning()

    def exact(
        q: Tensor, k: Tensor, v: Tensor, local: bool, rope: Rotary, dropout: float, chosen: Tensor | None
    ) -> Tensor:
        if chosen is not None and layout.first_tokens:
            turned = rope and (rope[0][chosen], rope[1][chosen])
            reach = layout.half_window + 1 if local else None
            return _first_tokens(rotate(q[chosen], turned), turn(k, rope), v, lengths, reach, dropout)
        q, k = turn(q, rope), turn(k, rope)
        if not local:
            return pick(_per_sequence(q, k, v, lengths, dropout), chosen)
        queries = q.unflatten(0, (-1, layout.block)).transpose(1, 2)
        keys, values = (_Neighbours.apply(x, layout.block).transpose(1, 2) for x in (k, v))
        return pick(_attention(queries, keys, values, bias, dropout).transpose(1, 2).flatten(0, 1), chosen)

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        local: bool,
        rope: Rotary = None,
        dropout: float = 0.0,
        chosen: Tensor | None = None,
    ) -> Tensor:
        if v.dtype == torch.bfloat16 and v.device.type == "cpu" and not dropout:
            # PyTorch's attention on CPUs is slower in bf16 than in fp32, backward above all.
            with torch.autocast("cpu", enabled=False):
                return exact(q.float(), k.float(), v.float(), local, rope, dropout, chosen).to(v.dtype)
        return exact(q, k, v, local, rope, dropout, chosen)

    return attend


def _first_tokens(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], reach: int | None, dropout: float) -> Tensor:
    """What each sequence's first token, [B, heads, head_size], finds in its sequence, or in the first `reach` of it."""
    sizes = [*lengths, k.shape[0] - sum(lengths)]
    keys, values = ([part[:reach].transpose(0, 1) for part in x.split(sizes)[:-1]] for x in (k, v))
    outs = [
        _attention(one.unsqueeze(1).unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0), None, dropout)[0, :, 0]
        for one, key, value in zip(q, keys, values, strict=True)
    ]
    return torch.stack(outs)


def _per_sequence(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], dropout: float) -> Tensor:
    # A loop, not a padded matrix: the unmasked kernel is the faster, and no work is spent on padding.
    sizes = [*lengths, q.shape[0] - sum(lengths)]  # the last: filler
    # Split before heads come first, and joined after: so backward, too, whole tokens are copied.
    parts = ([part.transpose(0, 1).unsqueeze(0) for part in x.split(sizes) if len(part)] for x in (q, k, v))
    outs = (_attention(q, k, v, None, dropout) for q, k, v in zip(*parts, strict=True))
    return torch.cat([out[0].transpose(0, 1) for out in outs])


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """SDPA; with dropout on a CPU, where PyTorch has no fused kernel for it, its arithmetic with our `drop`."""
    if not dropout or q.device.type != "cpu":
        bias = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return drop(scores.softmax(-1), dropout).to(v.dtype) @ v


def varlen_attention(layout: PackedLayout) -> Attend:
    """Flash attention over the stream as it is (CUDA, compute capability >= 8.0, fp16 or bf16)."""
    from torch.nn.attention.varlen import varlen_attn

    total = layout.sequence_ids.shape[0]
    ends = (layout.pad_index >= 0).sum(1).cumsum(0)
    # Filler counts as one more sequence, so its rows are computed (and finite), too.
    cu_seqlens = F.pad(ends, (1, 1))
    cu_seqlens[-1] = total
    cu_seqlens = cu_seqlens.to(torch.int32)
    longest = max(layout.pad_index.shape[1], layout.block)

    def attend(q: Tensor, k: Tensor, v: Tensor, *, local: bool, rope: Rotary = None, dropout: float = 0.0) -> Tensor:
        q, k = rotate(q, rope), rotate(k, rope)
        assert not dropout, "default_attention must not choose varlen_attn with dropout"
        window = (layout.half_window, layout.half_window) if local else (-1, -1)
        out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, window_size=window)
        assert isinstance(out, Tensor)
        return out

    return picking(attend)


def graph_attention(layout: PackedLayout) -> Attend:
    """Attention for export: MatMul-Softmax-MatMul that every ONNX engine runs and TensorRT fuses.

    Global layers gather the stream to [B, heads, S, head_size] with a key mask and scatter back, so only attention
    pays for padding, never the matrix products. Softmax runs in fp32 whatever the precision of q, k, v.
    Local layers gather, too: TensorRT fuses attention only if it can prove that queries, keys and mask have equally
    many blocks, and it cannot see that through padding and slicing.
    """
    block = layout.block
    longest = layout.pad_index.shape[1]
    bias = local_bias(layout)
    valid = layout.pad_index >= 0
    key_bias = torch.where(valid, 0.0, MASKED).unsqueeze(1).unsqueeze(1)
    nearby = nearby_keys(layout)
    gather = layout.pad_index.clamp(min=0)
    scatter = (layout.sequence_ids * longest + layout.position_ids).clamp(min=0)

    def attend(q: Tensor, k: Tensor, v: Tensor, *, local: bool, rope: Rotary = None, dropout: float = 0.0) -> Tensor:
        q, k = rotate(q, rope), rotate(k, rope)
        q = q * q.shape[-1] ** -0.5
        if local:
            q = q.unflatten(0, (-1, block)).transpose(1, 2)
            keys, values = (x[nearby].transpose(1, 2) for x in (k, v))
            out = _softmax_matmul(q, keys, values, bias)
            return out.transpose(1, 2).flatten(0, 1)
        q, k, v = (x[gather].transpose(1, 2) for x in (q, k, v))
        out = _softmax_matmul(q, k, v, key_bias).transpose(1, 2).flatten(0, 1)
        return out[scatter]

    return picking(attend)


def _softmax_matmul(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    scores = (q @ k.transpose(2, 3)).float() + bias
    return scores.softmax(-1).to(v.dtype) @ v
