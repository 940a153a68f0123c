"""Rotary positions: frequencies and attention scaling of every `rope_type`, and the angles of a stream.

The formulas are those of transformers' `modeling_rope_utils.py` (`ROPE_INIT_FUNCTIONS`), computed in its order of
operations, in fp32, so that angles are equal bit for bit. Each formula names its paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nopad.model.attention import PackedLayout
from nopad.model.rope_config import Rope, RopeType


def frequencies(rope: Rope, head_size: int, *, long: bool = False) -> tuple[Tensor, float]:
    """Radians per position, fp32 [head_size / 2], and the factor of cosine and sine.

    `long` is for texts beyond `original_max_position_embeddings`; only longrope has other values for them.
    """
    return _FORMULAS[rope.rope_type](rope, head_size, long)


def _wavelengths(rope: Rope, head_size: int, pairs: int | None = None) -> Tensor:
    """Positions per radian of plain rotary positions (RoFormer, arXiv:2104.09864), of the first `pairs` or of all."""
    exponent = torch.arange(0, head_size if pairs is None else 2 * pairs, 2, dtype=torch.float) / head_size
    return torch.as_tensor(rope.rope_theta**exponent)


def _default(rope: Rope, head_size: int, long: bool) -> tuple[Tensor, float]:
    # Dynamic NTK scaling, too: it changes frequencies only for texts longer than max_position_embeddings,
    # and no bundle takes such a text.
    return 1.0 / _wavelengths(rope, head_size), 1.0


def _linear(rope: Rope, head_size: int, long: bool) -> tuple[Tensor, float]:
    """Position interpolation (arXiv:2306.15595)."""
    return 1.0 / _wavelengths(rope, head_size) / _factor(rope), 1.0


def _yarn(rope: Rope, head_size: int, long: bool) -> tuple[Tensor, float]:
    """YaRN (arXiv:2309.00071, section 3): slow frequencies interpolated, fast ones kept, a ramp between them."""
    factor, wavelengths = _factor(rope), _wavelengths(rope, head_size)
    original = rope.original_max_position_embeddings or 0

    def dimension(rotations: float) -> float:
        """The dimension that turns so many times over the original length."""
        return (head_size * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast or 32), dimension(rope.beta_slow or 1)
    if rope.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    if low == high:
        high += 0.001
    kept = 1 - torch.clamp((torch.arange(head_size // 2, dtype=torch.float) - low) / (high - low), 0, 1)
    scaled = 1.0 / (factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept

    def magnitude(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.attention_factor is not None:
        return scaled, rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:  # both are DeepSeek-V3's
        return scaled, magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
    return scaled, magnitude()


def _longrope(rope: Rope, head_size: int, long: bool) -> tuple[Tensor, float]:
    """LongRoPE (arXiv:2402.13753): a searched factor for each frequency, others for long texts."""
    factor, original = _factor(rope), rope.original_max_position_embeddings or 0
    scale = rope.attention_factor
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    factors = torch.tensor((rope.long_factor if long else rope.short_factor) or (), dtype=torch.float)
    return 1.0 / (factors * _wavelengths(rope, head_size)), scale


def _llama3(rope: Rope, head_size: int, long: bool) -> tuple[Tensor, float]:
    """Llama 3.1 (arXiv:2407.21783): waves longer than the original length scaled, short ones kept, a ramp between."""
    low, high = rope.low_freq_factor or 0.0, rope.high_freq_factor or 0.0
    factor, original = _factor(rope), rope.original_max_position_embeddings or 0
    plain = 1.0 / _wavelengths(rope, head_size)
    lengths = 2 * math.pi / plain
    scaled = torch.where(lengths > original / low, plain / factor, plain)
    smooth = (original / lengths - low) / (high - low)
    between = ~(lengths < original / high) & ~(lengths > original / low)
    return torch.where(between, (1 - smooth) * scaled / factor + smooth * scaled, scaled), 1.0


def _proportional(rope: Rope, head_size: int, long: bool) -> tuple[Tensor, float]:
    """A share of the frequencies, spread over the whole head; the others do not turn."""
    share = 1.0 if rope.partial_rotary_factor is None else rope.partial_rotary_factor
    rotated = int(share * head_size // 2)
    plain = 1.0 / _wavelengths(rope, head_size, rotated)
    return torch.cat([plain, torch.zeros(head_size // 2 - rotated)]) / _factor(rope), 1.0


def _factor(rope: Rope) -> float:
    return 1.0 if rope.factor is None else rope.factor


_FORMULAS: dict[RopeType, Callable[[Rope, int, bool], tuple[Tensor, float]]] = {
    "default": _default,
    "dynamic": _default,
    "linear": _linear,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}


def rotary(layout: PackedLayout, head_size: int, rope: Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles of a stream, each [T, 1, head_size / 2]; angles in fp32."""
    device = layout.position_ids.device
    radians, scale = frequencies(rope, head_size)
    radians = radians.to(device)
    if rope.rope_type == "longrope":
        # By each text's own length, as in transformers for a single text; for a padded batch, it takes the longest.
        lengths = (layout.pad_index >= 0).sum(1)[layout.sequence_ids.clamp(min=0)]
        beyond = (lengths > (rope.original_max_position_embeddings or 0)).unsqueeze(-1)
        radians = torch.where(beyond, frequencies(rope, head_size, long=True)[0].to(device), radians)
    angles = layout.position_ids.unsqueeze(-1).float() * radians
    cos, sin = (part.unsqueeze(1) for part in (angles.cos(), angles.sin()))
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    return cos.to(dtype), sin.to(dtype)
