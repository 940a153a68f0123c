"""`runtime/data/labels.py`: which name a label matches, and which values spell a number."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopad.runtime.data.labels import is_hot, label_finder, listed, spelled_number, split_columns, zero_or_one


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[
            ("5", 5),
            ("-1", -1),
            ("+1", 1),
            (" 5 ", 5),
            ("0", 0),
            ("1.0", 1.0),
            ("-0.5", -0.5),
            (".5", 0.5),
            ("1e5", 1e5),
        ],
        *[("10115002", 10115002), ("9007199254740993", 9007199254740993), (7, 7), (2.5, 2.5), ("2.", 2.0)],
        *[("0102", None), ("-01", None), ("00", None), ("01.5", None), ("1_0", None), ("1,5", None), ("1 000", None)],
        *[
            ("٣", None),
            ("１", None),
            ("0x1A", None),
            ("1A", None),
            ("", None),
            ("--1", None),
            ("1e", None),
            (".", None),
        ],
        *[(True, None), ("true", None), (None, None), ([1], None), ("9" * 5000, None)],
    ],
)
def test_what_spells_a_number(value: Any, number: Any) -> None:
    found = spelled_number(value)
    assert found == number and type(found) is type(number)


@given(st.integers() | st.floats(allow_nan=False))
def test_numbers_that_python_writes_are_read_back(number: float) -> None:
    assert spelled_number(str(number)) == number and type(spelled_number(str(number))) is type(number)


STARS = ("1", "2", "3", "4", "5")


@pytest.mark.parametrize(
    ("names", "value", "index"),
    [
        *[(STARS, value, 0) for value in (1, 1.0, "1", "1.0", " 1", "+1", True)],
        *[(STARS, value, None) for value in (0, "0", 6, 1.5, "01", "one", "", None, -1)],
        *[(("1010", "4711"), value, index) for value, index in ((1010, 0), ("4711", 1), (0, None), (1, None))],
        *[(("0102", "0201"), value, index) for value, index in (("0102", 0), ("0201", 1), (1, None), (102, None))],
        *[(("-1", "0", "1"), value, index) for value, index in ((-1, 0), (0, 1), ("1", 2), (-1.0, 0), (2, None))],
        *[(("0.5", "1.5"), value, index) for value, index in ((0.5, 0), ("1.50", 1), (1, None))],
        *[(("1", "01"), value, index) for value, index in (("1", 0), ("01", 1), (1, 0))],
        *[(("neg", "pos"), value, index) for value, index in (("pos", 1), (1, 1), ("1", 1), (1.0, 1), (2, None))],
        *[(("neg", "pos"), value, None) for value in ("Pos", "pos ", -1, 0.5, "01", "true")],
        *[(("False", "True"), value, index) for value, index in ((True, 1), ("true", 1), ("FALSE", 0), (False, 0))],
        *[(("no", "yes"), value, index) for value, index in ((True, 1), (False, 0), ("yes", 1), ("Yes", None))],
        *[(("true", "True", "false"), value, index) for value, index in (("true", 0), (True, 1), ("True", 1))],
        (("LABEL_0", "LABEL_1"), "LABEL_1", 1),
        (("a", "2"), 1, None),  # one name of digits: numbers are names
        (("a", "b"), float("nan"), None),
        (("a", "b"), float("inf"), None),
        (("a", "b"), 10**400, None),
    ],
)
def test_which_name_a_label_is(names: tuple[str, ...], value: Any, index: int | None) -> None:
    assert label_finder(names)(value) == index


@given(st.lists(st.text(min_size=1, max_size=4) | st.integers(-20, 20).map(str), unique=True, min_size=1, max_size=6))
def test_every_name_is_itself(names: list[str]) -> None:
    assert [label_finder(names)(name) for name in names] == list(range(len(names)))


def test_cells_of_zeros_and_ones() -> None:
    assert [zero_or_one(cell) for cell in (0, 1, 1.0, "0", "1.0", " 1 ", True, "false", "TRUE")] == [
        0,
        1,
        1,
        0,
        1,
        1,
        1,
        0,
        1,
    ]
    for cell in (2, -1, 0.5, "yes", "", None, "01", float("nan")):
        with pytest.raises(ValueError, match="is not 0 or 1"):
            zero_or_one(cell)
    assert is_hot([0, True, "1"], 3) and not is_hot([0, 1], 3) and not is_hot([0, 2], 2) and not is_hot("01", 2)


def test_fields_with_commas() -> None:
    assert split_columns("toxic, insult", ["text", "toxic", "insult"]) == ["toxic", "insult"]
    assert split_columns("toxic, insult", ["text", "toxic, insult"]) == ["toxic, insult"]


def test_long_lists_are_cut() -> None:
    assert listed(range(3)) == "0, 1, 2" and listed(range(5000), 2) == "0, 1 and 4,998 more"
