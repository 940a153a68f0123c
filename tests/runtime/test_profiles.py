"""Profiles: which batches fit, and the profiles file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_profiles import NARROW, WIDE, batch_of, profiles

from nopad.runtime.errors import InputFileError
from nopad.runtime.profiles import (
    ShapeProfile,
    choose_profile,
    profile_from_json,
    read_profiles,
    write_profiles,
)

FAST = settings(max_examples=80, derandomize=True)


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
        (b"[1]", "not a profiles file of format version 1"),
        (b'{"format_version": 2, "profiles": []}', "not a profiles file of format version 1"),
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
