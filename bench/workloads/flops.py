"""The work in a workload, and how fast the machine's matrix products let anyone do it. Knows no engine.

FLOPs of the real tokens, nothing padded, counting a multiply-add as 2:

- matrix products: `nopad.runtime.planning.cost_model`;
- global attention, per layer: 4 h * sum of length^2, h the hidden size;
- local attention, per layer: 4 h * the (query, key) pairs within half a window w of each other, which are
  L + 2 * sum over d = 1 .. min(w, L - 1) of (L - d) in a text of L tokens.

Norms, activations, embeddings, heads and tokenization are left out (below 1 % of the FLOPs of a base model), so nobody
reaches the limit. It is that of fp32 products: int8 may exceed it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nopad.model.config import half_window_of
from nopad.runtime.errors import UsageError
from nopad.runtime.planning.cost_model import cost_model


def pairs_in_window(length: int, half_window: int) -> int:
    """(query, key) pairs of one text that a local layer looks at."""
    reach = min(half_window, length - 1)
    return length + 2 * (reach * length - reach * (reach + 1) // 2)


def flops_of(architecture: Mapping[str, Any], lengths: Sequence[int]) -> float | None:
    """FLOPs of one pass over texts of these lengths; None for an architecture that is no packed encoder's.

    `architecture` is a manifest's.
    """
    try:
        model = cost_model(architecture)
    except UsageError:
        return None
    half_window = half_window_of(architecture) or 0
    local = sum(pairs_in_window(length, half_window) for length in lengths) if model.local_layers else 0
    square = sum(length**2 for length in lengths)
    attention = 4 * model.hidden_size * (model.global_layers * square + model.local_layers * local)
    return float(model.product_flops * sum(lengths) + attention)
