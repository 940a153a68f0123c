"""Profiles: what a profile takes, its file, and that the runtime's micro-batches fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nopad.model.packing import PackedBatch, pack
from nopad.runtime.errors import InputFileError
from nopad.runtime.profiles import (
    ShapeProfile,
    choose_profile,
    plan_in_profiles,
    profile_from_json,
    read_profiles,
    write_profiles,
)

FAST = settings(max_examples=80, deadline=None, derandomize=True)
NARROW = ShapeProfile(tokens=(64, 512, 1024), sequences=(1, 8, 16), longest=(1, 64, 128))
WIDE = ShapeProfile(tokens=(64, 1024, 2048), sequences=(1, 2, 4), longest=(1, 512, 1024))


def batch_of(lengths: list[int], multiple: int) -> PackedBatch:
    return pack([[1] * length for length in lengths], multiple=multiple)


@st.composite
def ranges(draw: st.DrawFn, low: int, most: int) -> tuple[int, int, int]:
    a, b, c = sorted(draw(st.integers(low, most)) for _ in range(3))
    return a, b, c


@st.composite
def profiles(draw: st.DrawFn) -> ShapeProfile:
    """Any, also with minima and with sizes that are no multiple of a block."""
    longest = draw(ranges(1, 300))
    low, best, high = draw(ranges(1, 900))
    high = max(high, longest[2], 9)  # so that it can be filled
    return ShapeProfile(tokens=(low, best, high), sequences=draw(ranges(1, 9)), longest=longest)


@st.composite
def open_profiles(draw: st.DrawFn, multiple: int) -> ShapeProfile:
    """As the planner and the defaults make them: from one text of one token on."""
    blocks = draw(st.integers(1, 12))
    most = draw(st.integers(1, 9))
    longest = draw(st.integers(1, blocks * multiple))
    tokens = (multiple, multiple, blocks * multiple)
    return ShapeProfile(tokens=tokens, sequences=(1, 1, most), longest=(1, 1, longest))


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


def test_a_profile_takes_exactly_its_ranges() -> None:
    profile = ShapeProfile(tokens=(64, 128, 192), sequences=(2, 2, 3), longest=(5, 50, 100))
    assert profile.fits(batch_of([50, 60], 64)) and profile.fits(batch_of([5, 1], 64))
    assert not profile.fits(batch_of([50], 64))  # one sequence
    assert not profile.fits(batch_of([4, 4], 64))  # none of 5
    assert not profile.fits(batch_of([101, 1], 64))
    assert not profile.fits(batch_of([100, 93], 64))  # 256 with filler
    assert choose_profile([WIDE, NARROW], batch_of([50, 60], 64)) == 1  # the narrower one
    assert choose_profile([], batch_of([50], 64)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": (64, 32, 128)}, "tokens: min 64, opt 32"),
        ({"sequences": (0, 1, 1)}, "sequences: min 0"),
        ({"longest": (1, 9, 8)}, "longest: min 1, opt 9, max 8"),
        ({"longest": (1, 9, 2000)}, "2000 is more than tokens"),
        ({"sequences": (1025, 1025, 1025)}, "min 1025 is more than tokens"),
    ],
)
def test_what_no_builder_takes_is_refused(change: dict[str, tuple[int, int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapeProfile(**{"tokens": (64, 512, 1024), "sequences": (1, 8, 16), "longest": (1, 64, 128), **change})


@FAST
@given(chosen=st.lists(profiles(), min_size=1, max_size=4))
def test_a_profiles_file_gives_them_back(tmp_path_factory: pytest.TempPathFactory, chosen: list[ShapeProfile]) -> None:
    path = tmp_path_factory.getbasetemp() / "profiles.json"
    path.write_bytes(write_profiles(chosen, planned={"source": "reviews.jsonl"}))
    assert read_profiles(path) == tuple(chosen)
    assert json.loads(path.read_bytes())["planned"] == {"source": "reviews.jsonl"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "not valid JSON"),
        (b"[1]", "no profiles file of format version 1"),
        (b'{"format_version": 2, "profiles": []}', "no profiles file of format version 1"),
        (b'{"format_version": 1, "profiles": []}', "has no profiles"),
        (b'{"format_version": 1, "profiles": {"tokens": [1, 2, 3]}}', "has no profiles"),
        (b'{"format_version": 1, "profiles": [7]}', "profile 1: tokens is None, not .min, opt, max."),
    ],
)
def test_a_bad_profiles_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "profiles.json"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=message) as error:
        read_profiles(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("sizes", [[1, 2], [1, 2, "3"], [1, 2, 3.0], [True, 2, 3], "123", None, {"min": 1}])
def test_a_range_is_three_whole_numbers(tmp_path: Path, sizes: object) -> None:
    good = {"tokens": [64, 64, 128], "sequences": [1, 1, 2], "longest": [1, 1, 9]}
    assert profile_from_json(good).tokens == (64, 64, 128)
    path = tmp_path / "profiles.json"
    path.write_text(json.dumps({"format_version": 1, "profiles": [good, {**good, "sequences": sizes}]}))
    with pytest.raises(InputFileError, match="profile 2: sequences is "):
        read_profiles(path)


def test_a_missing_profiles_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="cannot read .*none.json: No such file"):
        read_profiles(tmp_path / "none.json")
