"""Published measurements that were not fitted lie within the errors that docs/forecast.md states."""

from __future__ import annotations

import math
from typing import Any

import pytest
from repository import load_script

from nopad.bench.forecast.data_sheets import GPUS
from nopad.bench.forecast.forecast import ERRORS, FIT


@pytest.fixture(scope="module")
def fitting() -> Any:
    """scripts/fit_forecast.py, which holds the published tables and how demo/BERT is counted."""
    return load_script("fit_forecast")


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.17), ("int8", 0.29)])
def test_held_out_t4_table_is_within_the_stated_error(fitting: Any, precision: str, bound: float) -> None:
    held_out = [one for one in fitting.entries() if (one.gpu, one.model, one.precision) == ("t4", "large", precision)]
    assert len(held_out) == 20
    errors = [math.expm1(abs(math.log(fitting.ratio(one, GPUS["t4"])))) for one in held_out]
    assert max(errors) < bound
    assert sorted(errors)[10] < 0.07


def test_low_and_high_hold_the_held_out_measurements(fitting: Any) -> None:
    low, high = ERRORS["table"]
    ratios = [
        fitting.ratio(one, GPUS[one.gpu])
        for one in fitting.entries()
        if one.gpu in fitting.FITTED and one.model == "large"
    ]
    assert len(ratios) == 120
    assert sum(low <= ratio <= high for ratio in ratios) / len(ratios) >= 0.95
    low, high = ERRORS["single"]
    gpus = fitting.singles(FIT)
    ratios = [
        fitting.ratio(one, gpus[one.gpu])
        for one in fitting.entries()
        if one.gpu in fitting.OTHERS and not fitting.calibrates(one)
    ]
    assert sum(low <= ratio <= high for ratio in ratios) / len(ratios) >= 0.95


def test_committed_shares_are_those_that_the_measurements_give(fitting: Any) -> None:
    found = fitting.singles(FIT)
    assert found["a10"].sustained == pytest.approx(GPUS["a10"].sustained, abs=0.005)
    assert found["h100"].sustained == GPUS["h100"].sustained == GPUS["h200"].sustained


@pytest.mark.slow
def test_committed_constants_are_the_fit(fitting: Any) -> None:
    fit, gpus = fitting.fit_constants()
    assert fit.product_share == pytest.approx(FIT.product_share, rel=0.02)
    assert fit.wave_seconds == pytest.approx(FIT.wave_seconds, rel=0.05)
    assert fit.kernel_seconds == pytest.approx(FIT.kernel_seconds, rel=0.02)
    for name, gpu in gpus.items():
        assert gpu.sustained == pytest.approx(GPUS[name].sustained, abs=0.005)
