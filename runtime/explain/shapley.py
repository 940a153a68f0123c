"""Shapley values of a function of which players take part: which coalitions to ask, and the values from the answers.

KernelSHAP (S. Lundberg and S.-I. Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017, arXiv
1705.07874): Shapley values are the solution of a weighted least-squares problem over coalitions. Coalitions are drawn
in pairs with their complements, which lessens the variance, and the values add up exactly (I. Covert and S.-I. Lee,
"Improving KernelSHAP", AISTATS 2021, arXiv 2012.01536). Knows no text.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
DoubleArray = npt.NDArray[np.float64]


class Coalitions(NamedTuple):
    """Coalitions beside the empty one and that of all players."""

    members: BoolArray  # [coalitions, players]
    weights: DoubleArray  # [coalitions]


def least_budget(players: int) -> int:
    """The fewest coalitions from which `choose` makes values: everybody, nobody, each alone, and all but each."""
    return min(2 * players + 2, 2**players)


def choose(players: int, budget: int, seed: int = 0) -> Coalitions:
    """At most `budget` - 2 coalitions; all that there are, if they fit, and then the values are exact.

    Sizes are taken whole from the outside in (all of one player and all but one, then two, ...) as long as they fit;
    the rest of the budget is drawn at random from the sizes between. Raises `ValueError` below `least_budget`.
    """
    if budget < least_budget(players):
        raise ValueError(f"{players} players need a budget of {least_budget(players)}, got {budget}")
    left, rows, weights = budget - 2, [], []
    size = 1
    while size <= players // 2 and _pairs(players, size) <= left:
        for own in {size, players - size}:
            for chosen in combinations(range(players), own):
                rows.append(_row(players, chosen))
                weights.append(_weight(players, own) / comb(players, own))
        left -= _pairs(players, size)
        size += 1
    if size <= players // 2:
        drawn = _draw(players, size, left, np.random.default_rng(seed))
        total = sum(_weight(players, own) for own in range(size, players - size + 1))
        share = total / max(1, sum(count for _, count in drawn))
        rows += [row for row, _ in drawn]
        weights += [share * count for _, count in drawn]
    return Coalitions(np.array(rows, dtype=bool).reshape(-1, players), np.array(weights, dtype=np.float64))


def all_but_one(players: int) -> Coalitions:
    """The coalitions that lack one player, in the players' order: what occlusion asks."""
    return Coalitions(~np.eye(players, dtype=bool), np.ones(players))


def values(coalitions: Coalitions, answers: DoubleArray, nobody: float, everybody: float) -> DoubleArray:
    """The value of each player, float64 [players]; they add up to `everybody` - `nobody`.

    `answers` [coalitions]: the function's, as `nobody` and `everybody` are of the two coalitions that are left out.
    """
    players = coalitions.members.shape[1]
    members = coalitions.members.astype(np.float64)
    weighted = members * coalitions.weights[:, None]
    system = np.ones((players + 1, players + 1))
    system[:players, :players] = members.T @ weighted
    system[players, players] = 0.0
    right = np.append(weighted.T @ (answers - nobody), everybody - nobody)
    # Lagrange: the least squares under the condition that the values add up.
    out: DoubleArray = np.linalg.solve(system, right)[:players]
    return out


def _weight(players: int, size: int) -> float:
    """The Shapley kernel's weight of all coalitions of a size together."""
    return (players - 1) / (size * (players - size))


def _pairs(players: int, size: int) -> int:
    """Coalitions of a size and their complements."""
    return comb(players, size) * (1 if 2 * size == players else 2)


def _row(players: int, chosen: tuple[int, ...]) -> BoolArray:
    row = np.zeros(players, dtype=bool)
    row[list(chosen)] = True
    return row


def _draw(players: int, least: int, most: int, random: np.random.Generator) -> list[tuple[BoolArray, int]]:
    """At most so many different coalitions of `least` players up to all but `least`, with how often each was drawn."""
    sizes = np.arange(least, players - least + 1)
    odds = 1.0 / (sizes * (players - sizes))
    odds /= odds.sum()
    rows: dict[bytes, BoolArray] = {}
    counts: dict[bytes, int] = {}
    for _ in range(4 * most):  # where few are left to be found, the same are drawn again and again
        if len(rows) + 2 > most:
            break
        row = _row(players, tuple(random.permutation(players)[: random.choice(sizes, p=odds)]))
        for one in (row, ~row):
            key = one.tobytes()
            rows.setdefault(key, one)
            counts[key] = counts.get(key, 0) + 1
    return [(row, counts[key]) for key, row in rows.items()]
