"""Arrivals: the offered rate, whatever their form, and the same again for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopad.bench.load.arrivals import Arrivals, parse
from nopad.runtime.errors import UsageError

FORMS = st.sampled_from(["poisson", "constant", "bursts:4", "bursts:32", "on-off:1:3", "on-off:0.5:0.25"])


@given(form=FORMS, rate=st.floats(0.5, 2000), seconds=st.floats(0.5, 60), seed=st.integers(0, 2**32))
def test_times_are_sorted_inside_and_of_the_offered_rate(form: str, rate: float, seconds: float, seed: int) -> None:
    arrivals = parse(form)
    times = arrivals.times(rate, seconds, seed)
    assert (np.diff(times) >= 0).all() and (times >= 0).all()
    assert (times < seconds + 1e-9 + 1 / rate * (arrivals.kind == "constant")).all()
    # A Poisson number of bursts: seven standard deviations of its mean.
    mean = rate * seconds
    assert abs(len(times) - mean) <= 7 * (mean * arrivals.size) ** 0.5 + 8 * arrivals.size
    assert (arrivals.times(rate, seconds, seed) == times).all()


def test_another_seed_gives_other_times_and_gaps_are_exponential() -> None:
    times = parse("poisson").times(1000, 60, 1)
    assert len(times) != len(parse("poisson").times(1000, 60, 2))
    gaps = np.diff(times)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.05)  # as of no other distribution in use here


def test_bursts_come_together_and_nothing_while_it_is_off() -> None:
    times = parse("bursts:8").times(80, 10, 0)
    assert len(times) % 8 == 0 and (times.reshape(-1, 8) == times.reshape(-1, 8)[:, :1]).all()
    times = parse("on-off:1:3").times(100, 40, 0)
    assert ((times % 4) < 1).all() and len(times) > 3500


@pytest.mark.parametrize("text", ["", "poison", "bursts", "bursts:0", "on-off:1", "on-off:0:1", "bursts:1.5"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="there are poisson"):
        parse(text)


def test_a_part_of_a_cycle_counts() -> None:
    times = Arrivals(kind="on-off", on=1.0, off=3.0).times(1000, 4.5, 0)  # on for 1.5 of 4.5 seconds
    assert len(times) == pytest.approx(4500, rel=0.1) and times.max() > 4
