"""Entities against the truth: F1 is seqeval's, and every entity is in the matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import f1_score, precision_recall_fscore_support

from nopad.analysis.tagged_rows import Span, kinds_of
from nopad.analysis.tags import NONE, tag_figures
from nopad.runtime.entities import read_tags, spans

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
sentences = st.lists(st.sampled_from(LABELS), min_size=1, max_size=9)


def entities(tags: list[str]) -> tuple[Span, ...]:
    """Entities of words that have 4 letters each."""
    meaning = dict(zip(LABELS, read_tags(LABELS), strict=True))
    return tuple(Span(kind, 5 * first, 5 * last + 4) for kind, first, last in spans([meaning[tag] for tag in tags]))


@settings(max_examples=40)
@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=8))
def test_f1_is_seqevals(pairs: list[tuple[list[str], list[str]]]) -> None:
    pairs = [(true[: min(len(true), len(got))], got[: min(len(true), len(got))]) for true, got in pairs]
    truth, given_ = [true for true, _ in pairs], [got for _, got in pairs]
    found = tag_figures([entities(one) for one in truth], [entities(one) for one in given_], ("LOC", "PER"))
    counts = np.array([(one.rows, one.given, one.right) for one in found.kinds])
    if counts.sum() == 0:
        assert found.f1 is None
        return
    assert found.f1 is not None and found.f1.value == pytest.approx(f1_score(truth, given_, zero_division=0))
    there = [one for one in found.kinds if one.rows or one.given]
    precision, recall, f1, rows = precision_recall_fscore_support(truth, given_, average=None, zero_division=0)
    assert [one.rows for one in there] == rows.tolist()
    assert [one.f1 or 0.0 for one in there] == pytest.approx(f1.tolist())
    assert [one.precision or 0.0 for one in there] == pytest.approx(precision.tolist())
    assert [one.recall or 0.0 for one in there] == pytest.approx(recall.tolist())
    matrix = np.array(found.confusion)
    assert matrix[:2].sum(axis=1).tolist() == counts[:, 0].tolist() and matrix[2, 2] == 0
    assert found.texts.value == np.mean([set(entities(a)) == set(entities(b)) for a, b in pairs])


def test_another_kind_other_limits_missed_and_made_up() -> None:
    truth = [(Span("PER", 0, 5), Span("LOC", 10, 20), Span("LOC", 30, 35)), ()]
    got = [(Span("LOC", 0, 5), Span("LOC", 10, 15)), (Span("PER", 3, 6),)]
    found = tag_figures(truth, got, ("LOC", "PER"))
    assert found.names == ("LOC", "PER", NONE) and found.limits == 1
    assert found.confusion == ((1, 0, 1), (1, 0, 0), (0, 1, 0))
    assert [(one.rows, one.given, one.right) for one in found.kinds] == [(2, 2, 0), (1, 1, 0)]


def test_the_kinds_of_a_scheme() -> None:
    assert kinds_of(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")) == ("PER", "LOC")
