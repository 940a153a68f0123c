"""Token ids equal those of transformers' own tokenizers, also for long and odd texts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, byte_level, unigram, wordpiece, write
from tokenizers import Tokenizer

from nopad.runtime.bundle import Bundle
from nopad.runtime.errors import BundleError, TextError
from nopad.runtime.manifest import FileRecord, Manifest
from nopad.runtime.tokenizer import CONFIG, TextEncoder, open_bundle_encoder, open_encoder

MAKERS = {
    **KINDS,
    "wordpiece without template": functools.partial(wordpiece, special=False),
    "lower-casing wordpiece": functools.partial(wordpiece, lowercase=True),
    "byte-level without template": functools.partial(byte_level, special=False),
    "byte-level with prefix space": functools.partial(byte_level, prefix=True),
    "unigram without template": functools.partial(unigram, special=False),
}
ODD = st.sampled_from(
    [
        "İ",
        "ﬁ",
        "①",
        "é",
        "e\u0301",
        "👩‍👩‍👧",
        "🇩🇪",
        "\x00",
        "\t",
        "\r\n",
        "\u200b",
        "\ufeff",
        "中",
        "مرحبا",
        "½",
        "ß",
        " ",
        "  ",
    ]
)
WORDS = st.sampled_from(["the", " film", "was ", "Alice", "café", "[CLS]", "[MASK]", "<mask>", "</s>", "##s", "▁"])
texts = st.lists(st.one_of(ODD, WORDS, st.text(max_size=4)), min_size=1, max_size=12).map("".join)
usable = texts.filter(lambda text: bool(text.strip()) and not any("\ud800" <= c <= "\udfff" for c in text))


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    return MAKERS[kind]()


@functools.cache
def reference(kind: str, side: str) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(kind),
        truncation_side=side,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizers")
    for kind in MAKERS:
        for side in ("left", "right"):
            # As an exported bundle has it: from the backend that transformers has made.
            backend = reference(kind, side).backend_tokenizer
            write(root / f"{kind} {side}", backend, {"truncation_side": side})
    return root


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", MAKERS)
def test_ids_types_and_offsets_are_those_of_transformers(kind: str, side: str, folder: Path) -> None:
    theirs = reference(kind, side)
    encoders = [open_encoder(folder / f"{kind} {side}" / "tokenizer.json", n) for n in range(1, 25)]

    @settings(max_examples=50)
    @given(first=usable, second=st.none() | usable, max_length=st.integers(1, 24))
    @example(first="\x00", second=None, max_length=8)
    @example(first="Alice works in Paris", second="the film was good, the end bad", max_length=9)
    @example(first="Alice works", second="a film", max_length=3)
    @example(first="Alice works", second=None, max_length=1)
    def check(first: str, second: str | None, max_length: int) -> None:
        text = first if second is None else (first, second)
        want = theirs(first, second, truncation=True, max_length=max_length, return_offsets_mapping=True)
        (got,) = encoders[max_length - 1].encode([text])
        if isinstance(got, TextError):
            assert not want["input_ids"] or len(want["input_ids"]) > max_length
            return
        assert got.input_ids == want["input_ids"] and len(got.input_ids) <= max_length
        assert got.token_type_ids == want["token_type_ids"]
        assert got.offsets == want["offset_mapping"]
        assert got.pieces == want.tokens()
        assert got.tokens == len(theirs(first, second)["input_ids"])
        parts = (first, second or "")
        assert all(0 <= a <= b <= max(map(len, parts)) for a, b in got.offsets)

    check()


def test_a_max_length_below_the_special_tokens_is_an_error_of_the_text_not_a_longer_answer(folder: Path) -> None:
    """The library does not truncate then: 13 ids where the model has room for two."""
    encoder = open_encoder(folder / "wordpiece right" / "tokenizer.json", 2)
    single, pair = encoder.encode(["Alice works in Paris", ("Alice works", "a film")])
    assert not isinstance(single, TextError) and single.used == 2
    assert isinstance(pair, TextError) and "no room" in str(pair) and "3 special tokens" in str(pair)


def test_a_text_of_no_token_is_an_error_of_its_own(folder: Path) -> None:
    encoder = open_encoder(folder / "wordpiece without template right" / "tokenizer.json", 8)
    nothing, something = encoder.encode(["\x00", "a film"])
    assert isinstance(nothing, TextError) and "no token" in str(nothing)
    assert not isinstance(something, TextError) and something.used == 2
    framed = open_encoder(folder / "wordpiece right" / "tokenizer.json", 8).encode(["\x00"])[0]
    assert not isinstance(framed, TextError) and framed.pieces == ["[CLS]", "[SEP]"]


def test_a_token_without_an_embedding_is_an_error_of_the_text_that_spells_it(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["[X]"])
    write(tmp_path, tokenizer, {})
    manifest = Manifest(task="embeddings", max_length=16, artifacts=(), files={}, architecture={"vocab_size": size})
    for encoder in (
        open_bundle_encoder(Bundle(path=tmp_path, manifest=manifest)),
        open_encoder(tmp_path / "tokenizer.json", 16, vocab_size=size),
    ):
        good, bad = encoder.encode(["a film", "a [X] film"])
        assert not isinstance(good, TextError)
        assert isinstance(bad, TextError) and "'[X]'" in str(bad) and "no embedding" in str(bad)


def test_a_special_token_that_a_text_spells_is_text_where_the_tokenizer_says_so(tmp_path: Path) -> None:
    write(tmp_path, wordpiece(), {"split_special_tokens": True})
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    (got,) = open_encoder(tmp_path / "tokenizer.json", 16).encode(["a [MASK] film"])
    assert not isinstance(got, TextError) and "[MASK]" not in got.pieces
    assert got.input_ids == theirs("a [MASK] film")["input_ids"]


def test_of_a_bundle_only_a_listed_configuration_is_read(tmp_path: Path) -> None:
    write(tmp_path, wordpiece(), {"truncation_side": "left"})
    record = FileRecord(sha256="", bytes=0)
    text = "Alice works in Paris"
    for files, side in (({}, "right"), ({CONFIG: record}, "left")):
        manifest = Manifest(task="embeddings", max_length=4, artifacts=(), files=files)
        (got,) = open_bundle_encoder(Bundle(path=tmp_path, manifest=manifest)).encode([text])
        assert not isinstance(got, TextError)
        assert got.pieces[1:-1] == (["Alice", "works"] if side == "right" else ["in", "Paris"])


@pytest.mark.parametrize("content", ["{", "[]", '{"truncation_side": "middle"}', '{"model_input_names": 3}'])
def test_a_damaged_configuration_is_named(content: str, tmp_path: Path) -> None:
    write(tmp_path, wordpiece(), None)
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(BundleError, match=CONFIG):
        open_encoder(tmp_path / "tokenizer.json", 8)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "empty"), (" \n\t", "empty"), (None, "NoneType"), (("a", "b", "c"), "two texts"), ("\ud800", "surrogate")],
)
def test_what_is_no_text_is_an_error_in_its_place(text: Any, said: str, folder: Path) -> None:
    encoder: TextEncoder = open_encoder(folder / "wordpiece right" / "tokenizer.json", 8)
    good, bad = encoder.encode(["a film", text])
    assert not isinstance(good, TextError) and isinstance(bad, TextError) and said in str(bad)
