"""The rounding of a weight matrix to int8, by what it does to the layer's answers on texts.

Rounding to the nearest value is best for each weight, not for their sum. Here the inputs of a layer are rounded one
after the other, and those to come make up for the error so far, as far as the layer's activations let them: they are
correlated, so most of it can be made up for (Frantar et al. 2022, GPTQ; the scales are those of `quantize_weight`).
Knows numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nopad.export.int8.scales import LEVELS, Scale, quantize_weight

_DAMPING = 0.01  # of the mean square of an input: inputs that the texts never use must not run away
_BLOCK = 64  # inputs whose corrections are made at once

Moments = npt.NDArray[np.float32]  # x.T @ x of the rows x [tokens, in] that a layer reads: [in, in]
Rounded = tuple[npt.NDArray[np.int8], Scale]  # values and the scale of each output channel, as of `quantize_weight`


@dataclass(frozen=True)
class Feedback:
    """How later inputs of a layer make up for the rounding of earlier ones."""

    order: npt.NDArray[np.intp]  # [in], what matters most first, while there is most left to make up for it
    correction: npt.NDArray[np.float32]  # [in, in], upper triangle: row i says by how much each later input does


def feedback(moments: Moments) -> Feedback:
    """The feedback of all layers that read inputs of these `moments`."""
    order = np.argsort(-np.diag(moments))
    damped = moments[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += max(_DAMPING * float(np.diag(damped).mean()), 1e-12)
    inverse = np.linalg.inv(damped)
    factor = np.linalg.cholesky((inverse + inverse.T) / 2).T
    return Feedback(order, np.ascontiguousarray(factor, dtype=np.float32))


def round_weight(weight: npt.NDArray[Any], axis: int, back: Feedback) -> Rounded:
    """As `quantize_weight`, with nearly the least squared error of `x @ weight` for the inputs x behind `back`."""
    _, scales = quantize_weight(weight, axis)
    turned = (weight.T if axis == 1 else weight).astype(np.float32)  # [out, in]
    rest = (turned / scales.astype(np.float32)[:, None])[:, back.order]
    rounded = np.empty(rest.shape, dtype=np.int8)
    for start in range(0, rest.shape[1], _BLOCK):
        end = min(start + _BLOCK, rest.shape[1])
        errors = np.empty((len(rest), end - start), dtype=np.float32)
        for i in range(start, end):
            value = np.clip(np.rint(rest[:, i]), -LEVELS, LEVELS)
            errors[:, i - start] = error = (rest[:, i] - value) / back.correction[i, i]
            rest[:, i + 1 : end] -= np.outer(error, back.correction[i, i + 1 : end])
            rounded[:, i] = value
        rest[:, end:] -= errors @ back.correction[start:end, end:]
    out = np.empty_like(rounded)
    out[:, back.order] = rounded
    return (out.T if axis == 1 else out), scales
