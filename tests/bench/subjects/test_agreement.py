"""How alike two subjects' embeddings are."""

import numpy as np
import pytest

from nopad.bench.subjects.agreement import smallest_cosine


def test_the_smallest_cosine_is_that_of_the_worst_text() -> None:
    rows = [np.array([1.0, 0.0], np.float32), np.array([0.0, 2.0], np.float32), np.zeros(2, np.float32)]
    turned = [np.array([3.0, 0.0], np.float32), np.array([1.0, 1.0], np.float32), np.zeros(2, np.float32)]
    assert smallest_cosine(rows, rows) == pytest.approx(1.0)
    assert smallest_cosine(rows, turned) == pytest.approx(0.5**0.5)
