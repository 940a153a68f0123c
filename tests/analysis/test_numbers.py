"""Figures of numbers, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from nopad.analysis.numbers import number_figures, ranked


def test_figures_are_those_of_scipy() -> None:
    draw = np.random.default_rng(3)
    truth = draw.integers(0, 6, (300, 1)).astype(np.float64)  # many equal ones
    answers = truth + draw.normal(0.3, 1.0, (300, 1))
    found = number_figures(answers, truth)
    assert found.spearman is not None and found.pearson is not None
    assert found.spearman.value == pytest.approx(scipy.stats.spearmanr(answers[:, 0], truth[:, 0]).statistic)
    assert found.spearman.low < found.spearman.value < found.spearman.high
    assert found.pearson == pytest.approx(scipy.stats.pearsonr(answers[:, 0], truth[:, 0]).statistic)
    assert np.array_equal(ranked(truth)[:, 0], scipy.stats.rankdata(truth[:, 0]) - 1)
    assert found.absolute.value == pytest.approx(np.abs(answers - truth).mean())
    assert found.bias == pytest.approx((answers - truth).mean()) and found.squared > found.absolute.value


def test_without_variation_there_is_no_correlation() -> None:
    found = number_figures(np.ones((5, 1)), np.arange(5.0)[:, None])
    assert found.spearman is None and found.pearson is None and found.absolute.value == pytest.approx(1.4)
