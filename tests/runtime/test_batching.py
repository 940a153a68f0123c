"""Windows of texts, and micro-batches: every text once, within the budget, in shapes that the engine takes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_profiles import NARROW, WIDE, batch_of, open_profiles, profiles

from nopad.runtime.batching import WINDOW, WINDOW_CHARACTERS, BatchPlanner, plan_in_profiles, windows
from nopad.runtime.profiles import ShapeProfile, choose_profile

FAST = settings(max_examples=80, derandomize=True)
TEXTS = st.text(max_size=9)


@FAST
@given(items=st.lists(TEXTS | st.tuples(TEXTS, TEXTS) | st.none(), max_size=1200))
def test_windows_hold_every_item_once_in_order(items: list[object]) -> None:
    cut = list(windows(items, lambda item: item))
    assert list(itertools.chain(*cut)) == items
    assert all(len(window) == WINDOW for window in cut[:-1]) and all(0 < len(window) <= WINDOW for window in cut)


def test_long_texts_make_small_windows() -> None:
    texts = ["x" * (WINDOW_CHARACTERS // 4)] * 9
    assert [len(window) for window in windows(texts, str)] == [4, 4, 1]
    pairs = [(text, "") for text in texts]
    assert [len(window) for window in windows(pairs, lambda pair: pair)] == [4, 4, 1]
    assert [len(window) for window in windows([("a", "b")] * (WINDOW + 1), tuple)] == [WINDOW, 1]


def test_a_window_is_read_when_it_is_asked_for() -> None:
    endless = itertools.count()
    assert len(next(windows(endless, str))) == WINDOW and next(endless) == WINDOW


LENGTHS = st.lists(st.integers(1, 400), max_size=40)
MULTIPLES = st.sampled_from([1, 64, 128])
BUDGETS = st.one_of(st.none(), st.integers(1, 1000))


@FAST
@given(
    lengths=LENGTHS, chosen=st.lists(profiles(), max_size=4), multiple=MULTIPLES, budget=BUDGETS, most=st.integers(1, 9)
)
def test_a_text_that_a_profile_takes_alone_is_answered_in_a_profile(
    lengths: list[int], chosen: list[ShapeProfile], multiple: int, budget: int | None, most: int
) -> None:
    plan = plan_in_profiles(lengths, chosen, token_budget=budget, max_sequences=most, multiple=multiple)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    tops = [max(lengths[i] for i in members) for members in plan]
    assert tops == sorted(tops, reverse=True)
    for members in plan:
        batch = batch_of([lengths[i] for i in members], multiple)
        assert len(members) <= most
        assert budget is None or len(members) == 1 or batch.num_tokens <= budget
        if choose_profile(chosen, batch) is None:
            assert len(members) == 1  # for another engine


@FAST
@given(data=st.data(), lengths=LENGTHS, multiple=MULTIPLES, budget=BUDGETS)
def test_without_minima_only_a_text_longer_than_every_profile_fits_none(
    data: st.DataObject, lengths: list[int], multiple: int, budget: int | None
) -> None:
    chosen = data.draw(st.lists(open_profiles(multiple), min_size=1, max_size=4))
    longest = max(profile.longest[2] for profile in chosen)
    for members in plan_in_profiles(lengths, chosen, token_budget=budget, max_sequences=512, multiple=multiple):
        batch = batch_of([lengths[i] for i in members], multiple)
        index = choose_profile(chosen, batch)
        if index is None:
            assert [lengths[i] > longest for i in members] == [True]
        else:
            assert chosen[index].fits(batch)


def test_a_short_text_does_not_meet_a_long_one() -> None:
    plan = plan_in_profiles([10, 900, 20, 500, 128], [WIDE, NARROW], token_budget=None, max_sequences=512)
    assert plan == [[1, 3], [4, 2, 0]]


def test_a_batch_below_the_minima_joins_a_wider_profile() -> None:
    choosy = ShapeProfile(tokens=(64, 256, 512), sequences=(4, 4, 4), longest=(1, 64, 128))
    lengths = [100] * 5 + [700]
    plan = plan_in_profiles(lengths, [choosy, WIDE], token_budget=None, max_sequences=512)
    assert sorted(map(len, plan)) == [2, 4]  # the fifth runs with the long one
    assert plan_in_profiles([100] * 5, [choosy], token_budget=None, max_sequences=512) == [[0, 1, 2, 3], [4]]


@pytest.mark.parametrize("multiple", [64, 100, 128, 256])
def test_filler_never_leads_out_of_a_profile(multiple: int) -> None:
    uneven = ShapeProfile(tokens=(1, 200, 250), sequences=(1, 8, 8), longest=(1, 100, 250))
    plan = plan_in_profiles([60, 60, 60, 70], [uneven], token_budget=None, max_sequences=8, multiple=multiple)
    fitting = [choose_profile([uneven], batch_of([60] * len(batch), multiple)) for batch in plan]
    # 250 tokens hold 192, 200 or 128 with filler; a stream of 256 never fits, and each text goes elsewhere alone.
    assert fitting == ([None] * 4 if multiple == 256 else [0] * len(plan))
    assert len(plan) == {64: 2, 100: 2, 128: 3, 256: 4}[multiple]


@FAST
@given(lengths=LENGTHS, engine=st.integers(1, 1000), asked=BUDGETS, multiple=MULTIPLES, padded=st.booleans())
def test_a_planner_keeps_the_callers_budget_or_else_the_engines(
    lengths: list[int], engine: int, asked: int | None, multiple: int, padded: bool
) -> None:
    planner = BatchPlanner(engine_tokens=engine, requested_tokens=asked, token_multiple=multiple, padded=padded)
    assert planner.token_budget == (engine if asked is None else asked)
    plan = planner.plan(lengths)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    for members in ([lengths[i] for i in batch] for batch in plan):
        computed = len(members) * max(members) if padded else sum(members)
        assert len(members) == 1 or computed <= planner.token_budget
        assert planner.takes(members)  # without profiles an engine takes any shape


@FAST
@given(lengths=LENGTHS, chosen=st.lists(profiles(), min_size=1, max_size=3), asked=BUDGETS, multiple=MULTIPLES)
def test_a_planner_of_profiles_plans_what_its_engine_takes(
    lengths: list[int], chosen: list[ShapeProfile], asked: int | None, multiple: int
) -> None:
    planner = BatchPlanner(engine_tokens=512, requested_tokens=asked, profiles=tuple(chosen), token_multiple=multiple)
    expected = plan_in_profiles(lengths, chosen, token_budget=asked, max_sequences=WINDOW, multiple=multiple)
    assert planner.plan(lengths) == expected
    for members in ([lengths[i] for i in batch] for batch in expected):
        assert planner.takes(members) == any(profile.fits(batch_of(members, multiple)) for profile in chosen)
        assert planner.takes(members) or len(members) == 1
