"""Nearest texts of embeddings: equal, shuffled, scaled, and too few."""

from __future__ import annotations

import numpy as np
import pytest

from nopad.export.int8.ranking import cosines, overlap, search_overlap

ROWS = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)


def test_length_does_not_count_and_noise_does() -> None:
    assert overlap(3 * ROWS, ROWS) == 1 and cosines(3 * ROWS, ROWS) == pytest.approx(1)
    noise = np.random.default_rng(1).standard_normal(ROWS.shape).astype(np.float32)
    shares = [overlap(ROWS + size * noise, ROWS) for size in (0.01, 0.1, 1)]
    assert 1 > shares[0] > 0.97 > shares[1] > shares[2] > 0.1
    assert overlap(noise, ROWS) < 0.15  # ten of 199 by chance


def test_a_text_is_not_its_own_neighbour() -> None:
    # Of twelve rows, ten of eleven others are compared: one is missing from each list.
    rows = np.eye(12, dtype=np.float32) + 0.1 * ROWS[:12, :12]
    assert overlap(rows, rows) == 1 and overlap(rows[:2], rows[:2]) == 1
    assert overlap(rows, rows[:, ::-1].copy()) >= 9 / 10 - 1e-6


def test_queries_search_a_corpus() -> None:
    queries, corpus = ROWS[:20], ROWS[20:]
    assert search_overlap((queries, corpus), (2 * queries, corpus)) == 1
    assert search_overlap((queries, corpus), (queries, -corpus)) == 0
