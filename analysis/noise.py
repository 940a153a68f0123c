"""Labels that are likely wrong: confident learning, from probabilities and given labels. numpy only.

C. G. Northcutt, L. Jiang, I. L. Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 2021,
arXiv 1911.00068). A label's threshold is its mean probability over the rows that were given it; a row is counted for
the likeliest of the labels whose probability reaches their threshold, and suspected where that is not the given one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nopad.analysis.intervals import Values

IntArray = npt.NDArray[np.int64]
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Suspects:
    """Rows whose given label is likely wrong, the surest first; `counts` is the paper's confident joint."""

    rows: IntArray  # [suspects]
    likely: IntArray  # [suspects]: the label that is likely meant
    thresholds: Values  # [num_labels]: infinite for a label that no row was given
    counts: IntArray  # [num_labels, num_labels]: rows given i that are likely j


def suspects(probabilities: Values, given: IntArray) -> Suspects:
    """Confident learning for [rows, num_labels] probabilities and the index of each row's given label.

    The order is that of the normalized margin: the given label's probability less the likely one's. The probabilities
    must come from a model that was not trained on these rows: one that learned a wrong label by heart defends it.
    """
    rows, labels = probabilities.shape
    having = np.bincount(given, minlength=labels)
    own = probabilities[np.arange(rows), given]
    sums = np.bincount(given, own, minlength=labels)
    thresholds = np.where(having > 0, sums / np.maximum(having, 1), np.inf)
    # A mean of equal numbers may be a bit above them.
    reached = np.where(probabilities >= thresholds - _ROUNDING, probabilities, -1.0)
    most = reached.max(axis=1)
    likely = np.where(reached[np.arange(rows), given] >= most - _ROUNDING, given, reached.argmax(axis=1))
    counted = most >= 0
    counts = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(counts, (given[counted], likely[counted]), 1)
    found = np.flatnonzero(counted & (likely != given))
    margin = own[found] - probabilities[found, likely[found]]
    order = found[np.argsort(margin, kind="stable")]
    return Suspects(rows=order, likely=likely[order], thresholds=thresholds, counts=counts)


def noise_share(found: Suspects, given: IntArray) -> float:
    """The estimated share of wrong labels: what is off the diagonal of the joint, each row scaled to its label's rows.

    (The paper's equation 3.) 0 where no row was counted.
    """
    having = np.bincount(given, minlength=len(found.counts)).astype(np.float64)
    totals = found.counts.sum(axis=1)
    joint = found.counts * (having / np.maximum(totals, 1))[:, None]
    return float(1 - np.trace(joint) / joint.sum()) if joint.sum() else 0.0
