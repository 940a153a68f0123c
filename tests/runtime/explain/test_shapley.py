"""The values are Shapley's: against their definition, by its axioms, and at every budget."""

from __future__ import annotations

from itertools import combinations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nopad.runtime.explain.shapley import all_but_one, choose, least_budget, values

Game = dict[frozenset[int], float]
REALS = st.floats(-5, 5, allow_nan=False, width=32)


@st.composite
def games(draw: st.DrawFn) -> tuple[int, Game]:
    players = draw(st.integers(1, 6))
    subsets = [frozenset(s) for n in range(players + 1) for s in combinations(range(players), n)]
    worth = draw(st.lists(REALS, min_size=len(subsets), max_size=len(subsets)))
    return players, dict(zip(subsets, worth, strict=True))


def defined(players: int, game: Game) -> list[float]:
    """Shapley values by their definition: the mean of what a player adds, over all orders."""
    found = []
    for player in range(players):
        others = [p for p in range(players) if p != player]
        total = 0.0
        for size in range(players):
            weight = factorial(size) * factorial(players - size - 1) / factorial(players)
            for chosen in combinations(others, size):
                without = frozenset(chosen)
                total += weight * (game[without | {player}] - game[without])
        found.append(total)
    return found


def asked(players: int, game: Game, budget: int) -> np.ndarray:
    coalitions = choose(players, budget)
    answers = np.array([game[frozenset(np.flatnonzero(row))] for row in coalitions.members], dtype=np.float64)
    return values(coalitions, answers, game[frozenset()], game[frozenset(range(players))])


@settings(max_examples=60)
@given(games())
def test_with_all_coalitions_the_values_are_exact(made: tuple[int, Game]) -> None:
    players, game = made
    found = asked(players, game, 2**players)
    assert np.allclose(found, defined(players, game), atol=1e-7)


@settings(max_examples=60)
@given(games(), st.integers(0, 40))
def test_at_every_budget_the_values_add_up(made: tuple[int, Game], more: int) -> None:
    players, game = made
    found = asked(players, game, least_budget(players) + more)
    assert found.sum() == pytest.approx(game[frozenset(range(players))] - game[frozenset()], abs=1e-7)


@settings(max_examples=30)
@given(st.integers(2, 30), st.integers(0, 200), st.randoms(use_true_random=False))
def test_of_a_sum_every_budget_finds_the_summands(players: int, more: int, random: object) -> None:
    summands = np.array([random.uniform(-3, 3) for _ in range(players)])  # type: ignore[attr-defined]
    coalitions = choose(players, least_budget(players) + more)
    answers = 0.5 + coalitions.members @ summands
    assert np.allclose(values(coalitions, answers, 0.5, 0.5 + summands.sum()), summands, atol=1e-6)


def test_players_that_do_nothing_or_the_same_get_nothing_or_the_same() -> None:
    # The first two win together, the third does nothing, the fourth adds 2 alone.
    def worth(row: np.ndarray) -> float:
        return 3.0 * bool(row[0] and row[1]) + 2.0 * bool(row[3])

    coalitions = choose(4, 16)
    found = values(coalitions, np.array([worth(row) for row in coalitions.members]), 0.0, 5.0)
    assert np.allclose(found, [1.5, 1.5, 0.0, 2.0])


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(0, 300))
def test_coalitions_differ_and_keep_within_the_budget(players: int, more: int) -> None:
    budget = least_budget(players) + more
    members, weights = choose(players, budget)
    assert len(members) + 2 <= budget and len(members) == len(weights)
    assert len({row.tobytes() for row in members}) == len(members)
    if players > 1:
        sizes = members.sum(1)
        assert sizes.min() >= 1 and sizes.max() <= players - 1 and (weights > 0).all()
        assert (choose(players, budget).members == members).all()  # the same again


def test_a_budget_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="need a budget of 22, got 21"):
        choose(10, 21)


def test_more_coalitions_come_nearer_to_the_values() -> None:
    random = np.random.default_rng(1)
    pairs = random.normal(size=(12, 12))

    def answers(members: np.ndarray) -> np.ndarray:
        inside = members.astype(float)
        return np.tanh(np.einsum("ni,ij,nj->n", inside, pairs, inside) / 3)

    full = answers(np.ones((1, 12), dtype=bool))[0]
    exact, few, many = (
        values(coalitions, answers(coalitions.members), 0.0, full)
        for coalitions in (choose(12, 2**12), choose(12, 26), choose(12, 1000))
    )
    assert np.abs(many - exact).max() < np.abs(few - exact).max() / 2


def test_occlusion_asks_for_all_but_one_in_order() -> None:
    assert (all_but_one(3).members == [[False, True, True], [True, False, True], [True, True, False]]).all()
