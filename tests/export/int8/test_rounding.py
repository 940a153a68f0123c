"""Weights rounded by what the texts read, against weights rounded to the nearest."""

from __future__ import annotations

import numpy as np
import pytest

from nopad.export.int8.rounding import feedback, round_weight
from nopad.export.int8.scales import quantize_weight


@pytest.mark.parametrize("axis", [0, 1])
def test_correlated_inputs_lose_less_than_with_the_nearest_values(axis: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4096, 16)) @ rng.standard_normal((16, 96)) + 0.1 * rng.standard_normal((4096, 96))
    train, test = rows[:3072].astype(np.float32), rows[3072:].astype(np.float32)
    weight = rng.standard_normal((96, 40)).astype(np.float32)  # [in, out]
    stored = weight if axis == 1 else weight.T.copy()
    errors = []
    for values, scales in (
        quantize_weight(stored, axis),
        round_weight(stored, axis, feedback(train.T @ train)),
    ):
        assert values.dtype == np.int8 and values.shape == stored.shape and np.abs(values.astype(int)).max() <= 127
        matrix = values * np.expand_dims(scales, 1 - axis)
        errors.append(np.square(test @ (matrix if axis == 1 else matrix.T) - test @ weight).mean())
    assert errors[1] < errors[0] / 4


def test_inputs_that_are_never_used_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((512, 24)).astype(np.float32)
    rows[:, 5] = 0
    weight = rng.standard_normal((24, 8)).astype(np.float32)
    values, scales = round_weight(weight, 1, feedback(rows.T @ rows))
    assert np.abs(values * scales - weight).max() <= 2 * scales.max()
    assert np.abs(values * scales - weight)[5].max() <= 0.6 * scales.max()
