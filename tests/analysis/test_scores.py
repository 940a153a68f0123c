"""Decisions against the truth, held to scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as theirs
from sklearn.metrics import f1_score, precision_recall_fscore_support

from nopad.analysis.scores import confusion_matrix, confusions, label_scores, macro_f1

NAMES = ("a", "b", "c")


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_one_label_each(pairs: list[tuple[int, int]]) -> None:
    truth, given_ = np.array(pairs).T
    hot = [np.eye(3)[labels] for labels in (truth, given_)]
    matrix = confusion_matrix(*hot)
    assert np.array_equal(matrix, theirs(truth, given_, labels=[0, 1, 2]))
    precision, recall, f1, rows = precision_recall_fscore_support(truth, given_, labels=[0, 1, 2], zero_division=0)
    for n, one in enumerate(label_scores(*hot, NAMES)):
        assert (one.precision or 0.0, one.recall or 0.0, one.f1 or 0.0) == pytest.approx(
            (precision[n], recall[n], f1[n])
        )
        assert one.rows == rows[n] and one.given == (given_ == n).sum()
    for pair in confusions(matrix, NAMES, 10):
        assert pair.rows == ((truth == NAMES.index(pair.label)) & (given_ == NAMES.index(pair.given))).sum() > 0
    assert sum(pair.rows for pair in confusions(matrix, NAMES, 10)) == (truth != given_).sum()


def test_macro_f1_is_scikit_learns_inside_its_interval() -> None:
    draw = np.random.default_rng(0)
    truth, given_ = (draw.random((2, 400, 3)) < 0.4).astype(np.float64)
    found = macro_f1(truth, given_)
    assert found is not None and found.value == pytest.approx(f1_score(truth, given_, average="macro"))
    assert found.low < found.value < found.high < found.low + 0.15


def test_no_label_anywhere_has_no_f1() -> None:
    assert macro_f1(np.zeros((4, 2)), np.zeros((4, 2))) is None
