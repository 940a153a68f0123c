"""Texts are taken apart without a rest: every token is in one unit, and units stand in the text's order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nopad.runtime import Model, load
from nopad.runtime.errors import TextError
from nopad.runtime.explain.units import Unit, units_of
from nopad.runtime.tokenizer import Tokens
from nopad.runtime.types import BYS, By, Text


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with load(threads=1) as opened:
        yield opened


def taken(model: Model, text: Text, by: By) -> tuple[Tokens, tuple[Unit, ...]]:
    (tokens,) = model.encode([text])
    assert isinstance(tokens, Tokens)
    return tokens, units_of(tokens, by)


def spelled(model: Model, text: str, by: By) -> list[str]:
    return [text[unit.start : unit.end] for unit in taken(model, text, by)[1]]


@pytest.mark.parametrize(
    ("by", "want"),
    [
        ("word", ["It", "wasn't", "3.5", "stars", ";", "a", "well-made", "film", ".", "Really", "?!"]),
        ("sentence", ["It wasn't 3.5 stars; a well-made film.", "Really?!"]),
    ],
)
def test_words_and_sentences(model: Model, by: By, want: list[str]) -> None:
    assert spelled(model, "It wasn't 3.5 stars; a well-made film.<br />  Really?!", by) == want


def test_scripts_without_spaces(model: Model) -> None:
    assert spelled(model, "这部电影很好。我喜欢！", "word") == [
        "这",
        "部",
        "电",
        "影",
        "很",
        "好",
        "。",
        "我",
        "喜",
        "欢",
        "！",
    ]
    assert spelled(model, "这部电影很好。我喜欢！", "sentence") == ["这部电影很好。", "我喜欢！"]


def test_the_bytes_of_a_letter_are_one_unit(model: Model) -> None:
    assert spelled(model, "good 🎬🍿 film", "token").count("🎬") <= 1
    assert "".join(spelled(model, "🎬🍿", "token")) == "🎬🍿"


def test_the_two_texts_of_a_pair(model: Model) -> None:
    tokens, units = taken(model, ("a film", "a film too"), "word")
    assert [(unit.part, unit.start, unit.end) for unit in units] == [
        *[(0, 0, 1), (0, 2, 6)],
        *[(1, 0, 1), (1, 2, 6), (1, 7, 10)],
    ]
    assert tokens.second == units[2].tokens[0]


def test_the_prompt_is_no_unit(model: Model) -> None:
    prompt = "query: "
    encoder = model.encoder
    (tokens,) = encoder.encode(["splendid film"], prompt)
    assert isinstance(tokens, Tokens)
    units = units_of(tokens, "word", prompt)
    assert ["splendid film"[unit.start : unit.end] for unit in units] == ["splendid", "film"]


def test_a_text_of_special_tokens_alone_is_refused() -> None:
    tokens = Tokens(
        text="[CLS]", input_ids=[1], token_type_ids=[0], tokens=1, offsets=[(0, 5)], special=[1], pieces=["[CLS]"]
    )
    with pytest.raises(TextError, match="no token that could be removed"):
        units_of(tokens, "word")


@settings(max_examples=80)
@given(text=st.text(min_size=1, max_size=60), by=st.sampled_from(BYS))
def test_every_token_is_in_one_unit_and_units_do_not_overlap(model: Model, text: str, by: By) -> None:
    (tokens,) = model.encode([text])
    if not isinstance(tokens, Tokens):
        return
    own = [place for place, special in enumerate(tokens.special) if not special and tokens.offsets[place][1] > 0]
    if not own:
        return
    units = units_of(tokens, by)
    assert [place for unit in units for place in unit.tokens] == own
    for before, after in zip(units, units[1:], strict=False):
        assert before.end <= after.start
    assert all(0 <= unit.start < unit.end <= len(text) for unit in units)
