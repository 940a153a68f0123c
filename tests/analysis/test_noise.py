"""Confident learning: the definition of the paper, row by row, and planted wrong labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nopad.analysis.noise import noise_share, suspects


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_a_row_is_counted_as_the_paper_says(seed: int) -> None:
    draw = np.random.default_rng(seed)
    p, labels = draw.dirichlet((0.5, 0.5, 0.5), 12), draw.integers(0, 3, 12)
    found = suspects(p, labels)
    wanted: dict[int, int] = {}
    counts = np.zeros((3, 3), dtype=int)
    for row in range(12):
        # The labels whose probability is at least the mean of those rows that were given the label.
        reached = [j for j in range(3) if (labels == j).any() and p[row, j] >= p[labels == j, j].mean()]
        if reached:
            likely = max(reached, key=lambda j: p[row, j])
            counts[labels[row], likely] += 1
            if likely != labels[row]:
                wanted[row] = likely
    assert dict(zip(found.rows.tolist(), found.likely.tolist(), strict=True)) == wanted
    assert np.array_equal(found.counts, counts)
    margins = [p[row, labels[row]] - p[row, likely] for row, likely in zip(found.rows, found.likely, strict=True)]
    assert margins == sorted(margins)
    assert 0 <= noise_share(found, labels) <= 1


def test_planted_labels_are_found_and_their_share_is_estimated() -> None:
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 4, 2000)
    logits = draw.normal(0, 1.5, (2000, 4)) + 4.0 * np.eye(4)[truth]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = draw.random(2000) < 0.08
    labels = np.where(wrong, (truth + draw.integers(1, 4, 2000)) % 4, truth)
    found = suspects(p, labels)
    right = wrong[found.rows]
    assert right.mean() > 0.85 and right.sum() > 0.7 * wrong.sum()
    assert (found.likely[right] == truth[found.rows[right]]).mean() > 0.95
    assert abs(noise_share(found, labels) - wrong.mean()) < 0.03
    assert right[: len(right) // 2].mean() > right[len(right) // 2 :].mean()  # the surest first


def test_where_nothing_is_likelier_nothing_is_suspected() -> None:
    found = suspects(np.full((7, 3), 1 / 3), np.array([0, 1, 2, 2, 1, 0, 0]))
    assert len(found.rows) == 0 and np.array_equal(found.counts, np.diag([3, 2, 2]))


def test_a_label_that_no_row_has_is_never_likely() -> None:
    p = np.array([[0.2, 0.1, 0.7], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1]])
    found = suspects(p, np.array([0, 0, 1]))
    assert not np.isfinite(found.thresholds[2]) and 2 not in found.likely
