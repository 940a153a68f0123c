"""The gate's grid of lengths, and the names of its cases."""

import pytest

from nopad.export.parity.lengths import grid_case, length_grid, read_grid_case


@pytest.mark.parametrize("tokens", [1, 512, 8192])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_case_is_read_back(tokens: int, mixed: bool) -> None:
    assert read_grid_case(grid_case(tokens, mixed)) == (tokens, mixed)


@pytest.mark.parametrize(
    "case", ["512 tokens", "21 sentences", "'12 tokens, alone'", "1,024 tokens, against transformers", "300 texts"]
)
def test_the_case_of_another_check_is_none_of_the_grid(case: str) -> None:
    assert read_grid_case(case) is None


def test_the_grid_has_every_edge_of_window_and_block() -> None:
    grid = length_grid(16, 64, 8192)
    assert grid == sorted(set(grid)) and grid[0] == 1 and grid[-1] == 512
    assert {15, 16, 17, 18, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511} <= set(grid)
    assert length_grid(16, 64, 40)[-1] <= 40
    assert {1029, 1030, 1031} & set(length_grid(515, 576, 8192)) == {1029, 1030, 1031}
    assert 8192 in length_grid(16, 64, 8192, longest=8192)
