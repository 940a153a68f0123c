"""Entities follow the tag scheme of the labels; their positions are characters of the original text."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, write
from tokenizers import Tokenizer

from nopad.runtime import decode
from nopad.runtime.entities import Tag, entities, read_tags
from nopad.runtime.errors import TextError
from nopad.runtime.manifest import Manifest
from nopad.runtime.tokenizer import open_encoder
from nopad.runtime.types import AnsweredBy

FAKE = AnsweredBy("fake", "fp32")
TEXT = "Ada Lovelace met Bob in New York City"
WORDS = [(0, 3), (4, 12), (13, 16), (17, 20), (21, 23), (24, 27), (28, 32), (33, 37)]


def spans(said: str, labels: tuple[str, ...] | None = None) -> list[tuple[str, str]]:
    """Kind and text of the entities of `TEXT` whose words have the labels of `said`."""
    names = said.split()
    tags = dict(zip(labels or (), read_tags(labels or ()), strict=True))
    if labels is None:
        known = tuple(sorted(set(names)))
        tags = dict(zip(known, read_tags(known), strict=True))
    found = entities([tags[name] for name in names], [0.5] * len(names), WORDS, TEXT)
    return [(entity.label, entity.text) for entity in found]


def scheme(letters: str, separator: str = "-", outside: str = "O") -> tuple[str, ...]:
    return (outside, *(f"{letter}{separator}{kind}" for letter in letters for kind in ("PER", "LOC")))


EXPECTED = [("PER", "Ada Lovelace"), ("PER", "Bob"), ("LOC", "New York City")]
SCHEMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "IOB2": ("B-PER I-PER O B-PER O B-LOC I-LOC I-LOC", scheme("BI")),
    "IOB1": ("I-PER I-PER O I-PER O I-LOC I-LOC I-LOC", scheme("BI")),
    "BIOES": ("B-PER E-PER O S-PER O B-LOC I-LOC E-LOC", scheme("BIES")),
    "BILOU": ("B-PER L-PER O U-PER O B-LOC I-LOC L-LOC", scheme("BILU")),
    "BMES": ("B-PER E-PER O S-PER O B-LOC M-LOC E-LOC", scheme("BMES")),
    "BMEWO": ("B-PER E-PER O W-PER O B-LOC M-LOC E-LOC", scheme("BMEW")),
    "underscores": ("B_PER E_PER O S_PER O B_LOC I_LOC E_LOC", scheme("BIES", "_")),
    "IOB2 with underscores": ("B_PER I_PER O B_PER O B_LOC I_LOC I_LOC", scheme("BI", "_")),
    "small letters": ("b-PER i-PER o b-PER o b-LOC i-LOC i-LOC", scheme("bi", outside="o")),
    "zero for outside": ("B-PER I-PER 0 B-PER 0 B-LOC I-LOC I-LOC", scheme("BI", outside="0")),
    "plain labels": ("PER PER O PER O LOC LOC LOC", ("O", "PER", "LOC")),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_says_the_same_of_the_same_entities(name: str) -> None:
    said, labels = SCHEMES[name]
    assert spans(said, labels) == EXPECTED


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        # Neighbours of one kind.
        ("B-PER B-PER O O O O O O", ["Ada", "Lovelace"]),
        ("I-PER B-PER O O O O O O", ["Ada", "Lovelace"]),
        ("S-PER S-PER O O O O O O", ["Ada", "Lovelace"]),
        ("B-PER E-PER S-PER O O O O O", ["Ada Lovelace", "met"]),
        ("B-PER E-PER B-PER E-PER O O O O", ["Ada Lovelace", "met Bob"]),
        ("B-PER E-PER I-PER O O O O O", ["Ada Lovelace", "met"]),
        # What the scheme does not allow: a stray I or E begins an entity, a missing E ends with the run.
        ("O I-PER E-PER O O O O O", ["Lovelace met"]),
        ("O E-PER E-PER O O O O O", ["Lovelace", "met"]),
        ("O E-PER O O O O O O", ["Lovelace"]),
        ("B-PER I-PER O O O O O O", ["Ada Lovelace"]),
        ("S-PER I-PER E-PER O O O O O", ["Ada", "Lovelace met"]),
        ("B-PER S-PER E-PER O O O O O", ["Ada", "Lovelace", "met"]),
        # Another kind, or anything between, is another entity.
        ("B-PER I-LOC E-LOC O O O O O", ["Ada", "Lovelace met"]),
        ("B-PER O E-PER O O O O O", ["Ada", "met"]),
    ],
)
def test_entities_that_touch_or_break_the_scheme(said: str, expected: list[str]) -> None:
    assert [text for _, text in spans(said, scheme("BIES"))] == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # A letter and a separator are no tag where no other tag of that kind is there.
        (("O", "E-MAIL", "PHONE", "S-BAHN"), [None, ("E-MAIL", ""), ("PHONE", ""), ("S-BAHN", "")]),
        (("O", "B_12", "L_DOPA"), [None, ("B_12", ""), ("L_DOPA", "")]),
        # Nor where those of other kinds use other letters or separators; where they use the same, it is a tag.
        (("B-PER", "I-PER", "E-MAIL"), [("PER", "B"), ("PER", "I"), ("E-MAIL", "")]),
        (("B-PER", "L-PER", "U-PER", "U-LOC"), [("PER", "B"), ("PER", "E"), ("PER", "S"), ("LOC", "S")]),
        (("B_X", "M_X", "E_X", "S_X", "S_Y"), [("X", "B"), ("X", "I"), ("X", "E"), ("X", "S"), ("Y", "S")]),
        # B- and I- are, as in transformers.
        (("O", "B-corporation"), [None, ("corporation", "B")]),
        # What follows the tag is the kind, whatever it holds.
        (("B-ORG-NESTED", "I-ORG-NESTED"), [("ORG-NESTED", "B"), ("ORG-NESTED", "I")]),
        (("B-first_name", "L-first_name", "0"), [("first_name", "B"), ("first_name", "E"), None]),
        (("B-", "I-", "O"), [("B-", ""), ("I-", ""), None]),
        # Without tags only O is outside.
        (("LABEL_0", "LABEL_1", "0", "o"), [("LABEL_0", ""), ("LABEL_1", ""), ("0", ""), ("o", "")]),
        (("0", "1", "2"), [("0", ""), ("1", ""), ("2", "")]),
        # Parts of speech beside tagged ones, as of Japanese models.
        (("NOUN", "B-NOUN", "I-NOUN", "VERB"), [("NOUN", ""), ("NOUN", "B"), ("NOUN", "I"), ("VERB", "")]),
    ],
)
def test_what_is_a_tag_is_told_by_all_labels(labels: tuple[str, ...], expected: list[Any]) -> None:
    want = [None if tag is None else Tag(kind=tag[0], place=tag[1]) for tag in expected]
    assert list(read_tags(labels)) == want


def pipeline_groups(labels: list[str]) -> list[dict[str, Any]]:
    """The groups of transformers' pipeline with aggregation "simple", by its own code."""
    pipe = transformers.TokenClassificationPipeline
    fake = pipe.__new__(pipe)
    fake.tokenizer = type("T", (), {"convert_tokens_to_string": staticmethod(" ".join)})()
    tokens = [
        {"entity": label, "score": 0.5, "word": TEXT[a:b], "start": a, "end": b}
        for label, (a, b) in zip(labels, WORDS, strict=True)
    ]
    return [group for group in fake.group_entities(tokens) if group["entity_group"] != "O"]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(scheme("BI")), min_size=8, max_size=8))
def test_bio_groups_are_those_of_the_pipeline(said: list[str]) -> None:
    want = [(group["entity_group"], TEXT[group["start"] : group["end"]]) for group in pipeline_groups(said)]
    assert spans(" ".join(said), scheme("BI")) == want


@settings(max_examples=100)
@given(st.lists(st.sampled_from(("O", "PER", "LOC", "MISC")), min_size=8, max_size=8))
def test_plain_groups_are_those_of_the_pipeline(said: list[str]) -> None:
    want = [(group["entity_group"], TEXT[group["start"] : group["end"]]) for group in pipeline_groups(said)]
    assert spans(" ".join(said), ("O", "PER", "LOC", "MISC")) == want


LABELS = scheme("BIES")
PIECES = st.one_of(
    st.sampled_from(
        ["İ", "ﬁ", "é", "e\u0301", "👩‍👩‍👧", "🇩🇪", "\x00", "\t", "\r\n", "\u200b", "中文", "مرحبا", "שלום", "½"]
    ),
    st.sampled_from(["Alice", " works", " in", " Paris", "café", "  ", "▁", "##s"]),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=4),
)


@functools.cache
def reference(kind: str) -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=KINDS[kind]())


@pytest.mark.parametrize("kind", KINDS)
def test_entities_keep_to_the_characters_of_the_text(kind: str, tmp_path: Path) -> None:
    backend: Tokenizer = reference(kind).backend_tokenizer
    encoder = open_encoder(write(tmp_path, backend, {}) / "tokenizer.json", 64)
    manifest = Manifest(task="token-classification", max_length=64, artifacts=(), files={}, labels=LABELS)

    @settings(max_examples=80)
    @given(parts=st.lists(PIECES, min_size=1, max_size=10), seed=st.integers(0, 2**16))
    @example(parts=["\x00"], seed=0)
    @example(parts=["👩‍👩‍👧", "İﬁ", "\r\n"], seed=1)
    def check(parts: list[str], seed: int) -> None:
        text = "".join(parts)
        (tokens,) = encoder.encode([text])
        if isinstance(tokens, TextError):
            assert not text.strip()
            return
        logits = np.random.default_rng(seed).normal(size=(tokens.used, len(LABELS))).astype(np.float32)
        answer = decode.tagging(logits, tokens, manifest.head, FAKE, False)
        want = reference(kind)(text, return_offsets_mapping=True, truncation=True, max_length=64)["offset_mapping"]
        edges = {edge for pair in want for edge in pair}
        end = 0
        for entity in answer.entities:
            assert entity.text == text[entity.start : entity.end] and entity.text
            assert end <= entity.start < entity.end <= len(text)
            # Its ends are a token's, white space aside.
            assert entity.start in edges or not text[entity.start - 1].strip()
            assert entity.end in edges or not text[entity.end].strip()
            end = entity.end

    check()


def test_every_split_of_a_text_is_found_where_it_stands(tmp_path: Path) -> None:
    """Emoji of several code points, combining marks, right-to-left words, NUL, tab and CRLF before and after a name."""
    write(tmp_path, reference("byte-level").backend_tokenizer, {})
    encoder = open_encoder(tmp_path / "tokenizer.json", 128)
    manifest = Manifest(task="token-classification", max_length=128, artifacts=(), files={}, labels=("O", "PER"))
    odd = ["👩‍👩‍👧", "e\u0301", "שלום", "\x00", "\t", "\r\n", "🇩🇪"]
    for before, after in itertools.product(odd, odd):
        text = f"{before} Alice {after}"
        (tokens,) = encoder.encode([text])
        assert not isinstance(tokens, TextError)
        start = text.index("Alice")
        inside = [start - 1 <= a and b <= start + 5 and a < b for a, b in tokens.offsets]
        logits = np.array([[0.0, 9.0] if tagged else [9.0, 0.0] for tagged in inside], dtype=np.float32)
        (found,) = decode.tagging(logits, tokens, manifest.head, FAKE, False).entities
        assert (found.start, found.end, found.text) == (start, start + 5, "Alice")


def test_a_character_of_several_tokens_belongs_to_one_entity(tmp_path: Path) -> None:
    write(tmp_path, reference("byte-level").backend_tokenizer, {})
    (tokens,) = open_encoder(tmp_path / "tokenizer.json", 16).encode(["🍿"])
    assert not isinstance(tokens, TextError) and tokens.used > 3
    labels = ("O", "A", "B")
    manifest = Manifest(task="token-classification", max_length=16, artifacts=(), files={}, labels=labels)
    logits = np.eye(3, dtype=np.float32)[[0, 1, *[2] * (tokens.used - 3), 0]] * 9
    (found,) = decode.tagging(logits, tokens, manifest.head, FAKE, False).entities
    assert (found.label, found.start, found.end) == ("A", 0, 1)


def test_a_pair_is_no_text_to_tag(tmp_path: Path) -> None:
    """A position in its second text would be ambiguous."""
    write(tmp_path, reference("wordpiece").backend_tokenizer, {})
    (tokens,) = open_encoder(tmp_path / "tokenizer.json", 16).encode([("Alice", "Bob")])
    assert not isinstance(tokens, TextError)
    manifest = Manifest(task="token-classification", max_length=16, artifacts=(), files={}, labels=("O", "PER"))
    with pytest.raises(TextError, match="pair"):
        decode.tagging(np.zeros((tokens.used, 2), dtype=np.float32), tokens, manifest.head, FAKE, False)
