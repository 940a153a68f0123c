"""Metrics of rankings, which embeddings and rerankers share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CUTOFF = 10  # ranks that count
_DISCOUNTS = 1 / np.log2(np.arange(2, CUTOFF + 2))


def ranking(hits: npt.NDArray[np.bool_], relevant: npt.NDArray[np.int64]) -> dict[str, float]:
    """Means over queries of the reciprocal rank of the first hit, and of nDCG (K. Järvelin and J. Kekäläinen, 2002).

    `hits`, bool [queries, CUTOFF]: which ranks are relevant; `relevant`, int64 [queries]: how many texts are, at
    least one.
    """
    reciprocal = np.where(hits.any(1), 1 / (hits.argmax(1) + 1), 0.0)
    ideal = np.cumsum(_DISCOUNTS)[np.minimum(relevant, CUTOFF) - 1]
    return {
        f"mrr@{CUTOFF}": float(reciprocal.mean()),
        f"ndcg@{CUTOFF}": float((hits @ _DISCOUNTS / ideal).mean()),
    }
