"""Groups of an architecture: their sum is the FLOP count of the cost model."""

from __future__ import annotations

import pytest
from architectures import ARCHITECTURES
from hypothesis import given
from hypothesis import strategies as st

from nopad.bench.forecast.count_architecture import count_architecture
from nopad.bench.forecast.groups import WIDTHS, Shape, total_flops
from nopad.runtime.planning.cost_model import cost_model

SIZE = st.integers(1, 300)


@given(
    blocks=SIZE,
    sequences=SIZE,
    longest=SIZE,
    architecture=st.sampled_from(ARCHITECTURES),
    precision=st.sampled_from(sorted(WIDTHS)),
    gather=st.booleans(),
)
def test_the_groups_sum_up_to_the_one_count(
    blocks: int, sequences: int, longest: int, architecture: object, precision: str, gather: bool
) -> None:
    shape = Shape(tokens=64 * blocks, sequences=sequences, longest=longest)
    groups = count_architecture(architecture, shape, precision=precision, gather=gather)  # type: ignore[arg-type]
    planned = cost_model(architecture).work(shape.tokens, sequences, longest)  # type: ignore[arg-type]
    assert total_flops(groups) == pytest.approx(planned, rel=1e-12)
