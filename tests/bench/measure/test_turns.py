"""Turns: which subjects share a group, in which order, and until when."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runners import GOOD, good
from runners import FakeRunner as Fake

from nopad.bench.measure.turns import groups_that_fit, take_turns
from nopad.bench.subjects.spec import Runner
from nopad.bench.workloads import Texts


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(1, 200), st.booleans())
def test_groups_fit_and_nobody_is_forgotten(sizes: list[int], room: int, reference: bool) -> None:
    needs = [(str(number), size) for number, size in enumerate(sizes)]
    groups, left_out = groups_that_fit(needs, "0" if reference else None, room)
    sizes = dict(needs)
    assert all(sum(sizes[name] for name in group) <= room for group in groups)
    inside = [name for group in groups for name in group]
    assert set(inside) | set(left_out) == set(sizes) and not set(inside) & set(left_out)
    if reference and "0" not in left_out:
        assert all(group[0] == "0" for group in groups)
        assert all(sizes[name] + sizes["0"] > room for name in left_out)
    assert all(inside.count(name) == 1 for name in inside if name != "0")


def test_the_order_changes_from_round_to_round_and_is_seeded(workload: Texts) -> None:
    def order(seed: int) -> list[str]:
        turns: list[str] = []
        fakes: dict[str, Runner] = {
            name: Fake(lambda call, texts, name=name: turns.append(name) or [GOOD] * texts)  # type: ignore[misc]
            for name in "abc"
        }
        take_turns(
            fakes,
            workload,
            dict.fromkeys("abc", 1.0),
            rounds=range(6),
            order=random.Random(seed),
            deadline=None,
            each_round=lambda times: None,
            failed=lambda name, error: None,
        )
        return turns

    first = order(1)
    assert first == order(1) != order(2)
    rounds = {"".join(first[at : at + 3]) for at in range(0, 18, 3)}
    assert len(rounds) > 1 and all(sorted(names) == list("abc") for names in rounds)


@pytest.mark.parametrize(("left", "rounds"), [(1e6, 4), (-1.0, 1)])
def test_a_time_limit_takes_rounds_away(left: float, rounds: int, workload: Texts) -> None:
    times = take_turns(
        {"nopad-fp32": Fake(good)},
        workload,
        {"nopad-fp32": 1.0},
        rounds=range(4),
        order=random.Random(0),
        deadline=time.monotonic() + left,
        each_round=lambda times: None,
        failed=lambda name, error: None,
    )
    assert times["nopad-fp32"].rounds == list(range(rounds))
