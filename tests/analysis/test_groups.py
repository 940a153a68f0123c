"""Which rows are together."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nopad.analysis.groups import by_length, by_value


def counts(groups: dict[str, Any]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in groups.items()}


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=50))
def test_every_length_is_in_one_group(tokens: list[int]) -> None:
    groups = by_length(np.array(tokens))
    assert (np.sum(list(groups.values()), axis=0) == 1).all()
    for name, mask in groups.items():
        low, high = (int(end.replace(",", "")) for end in name.split("–"))
        assert all(low <= length <= high for length, inside in zip(tokens, mask, strict=True) if inside)


def test_values_by_frequency_rare_ones_together() -> None:
    values = ["a"] * 5 + ["b"] * 9 + [None, ""] + [f"rare {n}" for n in range(20)]
    found = counts(by_value(values))
    assert list(found)[:3] == ["b", "a", "(none)"] and found["(none)"] == 2
    assert found["11 other values"] == 11 and sum(found.values()) == len(values)


def test_a_list_is_in_the_group_of_each_item() -> None:
    assert counts(by_value([["x", "y"], ["y"], []])) == {"y": 2, "x": 1}


def test_many_numbers_are_in_quarters() -> None:
    found = counts(by_value([*range(100), None]))
    assert list(found) == ["0 to below 24.75", "24.75 to below 49.5", "49.5 to below 74.25", "74.25 to 99", "(none)"]
    assert list(found.values()) == [25, 25, 25, 25, 1]
    assert counts(by_value([1, 2, 2])) == {"2": 2, "1": 1}
