"""Which texts make a batch: every row once an epoch, budgets kept, tokens shared evenly, one step for all processes."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nopad.runtime.errors import UsageError
from nopad.training.batches import Batches
from nopad.training.errors import DataError

ANY_MACHINE = settings(suppress_health_check=[HealthCheck.too_slow])  # that other work may slow down
LENGTHS = st.lists(st.integers(1, 60), min_size=4, max_size=120)


def steps(lengths: list[int], processes: int, epoch: int = 0, **options: int) -> list[list[list[int]]]:
    """The rows of each step, for each process."""
    all_batches = []
    for process in range(processes):
        batches = Batches(lengths, seed=7, process=process, processes=processes, **{"texts": 8, **options})
        batches.set_epoch(epoch)
        rows = list(batches)
        assert len(rows) == len(batches)
        all_batches.append(rows)
    return [list(step) for step in zip(*all_batches, strict=True)]


@ANY_MACHINE
@given(lengths=LENGTHS, processes=st.integers(1, 4), texts=st.integers(1, 20), epoch=st.integers(0, 3))
def test_by_texts(lengths: list[int], processes: int, texts: int, epoch: int) -> None:
    planned = steps(lengths, processes, epoch, texts=texts)
    assert sorted(row for step in planned for part in step for row in part) == list(range(len(lengths)))
    for step in planned:
        loads = [sum(lengths[row] for row in part) for part in step]
        assert all(step) and max(loads) - min(loads) <= max(lengths)
    for step in planned[:-1]:
        assert sum(map(len, step)) == texts * processes


@ANY_MACHINE
@given(lengths=LENGTHS, processes=st.integers(1, 4), spare=st.integers(0, 500), epoch=st.integers(0, 3))
def test_by_tokens(lengths: list[int], processes: int, spare: int, epoch: int) -> None:
    budget = 3 * max(lengths) + spare
    planned = steps(lengths, processes, epoch, tokens=budget)
    assert sorted(row for step in planned for part in step for row in part) == list(range(len(lengths)))
    for step in planned:
        loads = [sum(lengths[row] for row in part) for part in step]
        assert all(step) and max(loads) <= budget and max(loads) - min(loads) <= max(lengths)


def test_a_step_learns_from_the_same_texts_in_one_process_as_in_two() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 1000).tolist()
    one, two = steps(lengths, 1, texts=32), steps(lengths, 2, texts=16)
    assert [sorted(rows) for (rows,) in one] == [sorted(left + right) for left, right in two]


@pytest.mark.parametrize("options", [{"texts": 16}, {"tokens": 4000}])
def test_two_processes_have_about_the_same_work(options: dict[str, int]) -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 1000).tolist()
    loads = [[sum(lengths[row] for row in part) for part in step] for step in steps(lengths, 2, **options)]
    assert np.mean([abs(left - right) / (left + right) for left, right in loads]) < 0.02


def test_the_order_is_new_in_every_epoch_and_the_same_for_a_seed() -> None:
    lengths = list(range(1, 101))
    assert steps(lengths, 1) == steps(lengths, 1) != steps(lengths, 1, epoch=1)


def test_a_budget_too_small_for_the_texts_says_what_is_enough() -> None:
    with pytest.raises(UsageError, match="--batch-tokens 1536 or more, or a lower --max-length"):
        Batches([512, 30], texts=8, tokens=1535, seed=0)


def test_more_processes_than_texts() -> None:
    with pytest.raises(DataError, match=r"1 row\(s\) cannot be shared by 2 processes"):
        Batches([5], texts=8, seed=0, processes=2)
