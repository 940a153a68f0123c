"""How weights are rounded, and how activations are clipped."""

from __future__ import annotations

import numpy as np
import pytest

from nopad.export.int8.scales import CLIPPINGS, count, quantize_weight


def test_weights_are_rounded_to_the_nearest_step_of_their_channel() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((6, 50)) * [[1], [0.1], [30], [1e-3], [1e-6], [0]]).astype(np.float16)
    values, scales = quantize_weight(weight, 0)
    assert (values.dtype, scales.dtype, scales.shape) == (np.int8, np.float16, (6,))
    steps = scales.astype(np.float64)[:, None]
    assert np.isfinite(steps).all() and (steps > 0).all()
    assert (np.abs(values * steps - weight) <= steps / 2 * 1.001).all()
    assert (np.abs(values[:4]).max(axis=1) >= 126).all()  # the range is used, except where fp16 has no finer scale
    assert (values[5] == 0).all()
    turned, same = quantize_weight(weight.T.copy(), 1)
    assert (values == turned.T).all() and (same == scales).all()


def test_clippings_differ_as_they_say() -> None:
    values = np.random.default_rng(1).standard_normal(1_000_000).astype(np.float16)
    values[:20] = 50  # one of fifty thousand
    clip = {name: float(scale(count(values))) * 127 for name, scale in CLIPPINGS.items()}
    assert clip["largest"] == pytest.approx(50, rel=2e-3)
    assert clip["percentile"] == pytest.approx(np.quantile(np.abs(values), 0.9999), rel=1e-2)

    def error(limit: float) -> float:
        exact = values.astype(np.float64)
        step = limit / 127
        return float(np.mean((np.clip(np.rint(exact / step), -127, 127) * step - exact) ** 2))

    assert error(clip["least_squares"]) <= min(error(limit) for limit in np.linspace(3, 50, 48)) * 1.01
    assert all(float(scale(count(np.zeros(9, dtype=np.float16)))) > 0 for scale in CLIPPINGS.values())
