"""Dropout with a mask that is cheap to draw on CPUs.

PyTorch's own takes a third of BERT's training time on a CPU. Here 16 bits of the same generator decide for an element,
so seeds, saved random states and recomputation work as they do elsewhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 1 << 16  # of the probability: it is kept to within 1 / 131,072


class Dropout(nn.Dropout):
    """`nn.Dropout`, drawn as in `drop`."""

    def forward(self, x: Tensor) -> Tensor:
        """Nothing in evaluation; in training some elements are 0 and the others larger."""
        return drop(x, self.p) if self.training else super().forward(x)


def drop(x: Tensor, probability: float) -> Tensor:
    """Zeros with this probability, the other elements divided by the probability to be kept."""
    if not probability:
        return x
    if x.device.type != "cpu" or probability == 1.0:
        return F.dropout(x, probability)
    return x * keep_mask(x.shape, probability, x.dtype)


def keep_mask(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """What dropout multiplies elements on the CPU by: 0 with this probability (below 1), else a constant over 1."""
    dropped = round(probability * _STEPS)
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)  # 64 bits each
    kept = words.view(torch.int16)[: shape.numel()].view(shape) >= dropped - _STEPS // 2
    return kept.to(dtype).mul_(_STEPS / (_STEPS - dropped))
