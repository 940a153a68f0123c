"""What is said of a tokenizer that was not made for the language of the texts, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import transformers
from repository import DATA
from small_tokenizers import gemma, unigram
from training_samples import write_jsonl

from nopad.training.tokenizer_fit import measure_fit, remark_on_tokenizer

CHINESE = ["这部电影很无聊", "这部电影太精彩了", "我不推荐大家去看，浪费时间", "演员的表演非常出色，故事也很感人"]
RUSSIAN = ["Фильм затянут, но актёры вытягивают его до самого конца.", "Скучно и предсказуемо, не советую никому."]
HINDI = ["यह फ़िल्म बहुत उबाऊ है", "कहानी शानदार है और अभिनय भी अच्छा है"]
KOREAN = ["이 영화는 정말 지루했어요", "배우들의 연기가 훌륭했습니다"]
ARABIC = ["هذا الفيلم ممل جدا", "قصة رائعة وتمثيل ممتاز"]
FOREIGN = {"Chinese": CHINESE, "Russian": RUSSIAN, "Hindi": HINDI, "Korean": KOREAN, "Arabic": ARABIC}


@pytest.fixture(scope="module")
def modernbert(imdb: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(imdb.parent / "modernbert-tokenizer")


@pytest.fixture(scope="module")
def bert_uncased(imdb: Path) -> Any:
    return transformers.BertTokenizerFast.from_pretrained(imdb.parent / "bert-base-uncased")


def rows(texts: list[str]) -> Any:
    import datasets

    return datasets.Dataset.from_dict({"text": texts, "target": list(range(len(texts)))})


@pytest.mark.parametrize("language", FOREIGN)
def test_texts_that_the_tokenizers_of_english_were_not_made_for(
    language: str, modernbert: Any, bert_uncased: Any
) -> None:
    for tokenizer in (modernbert, bert_uncased):
        said = remark_on_tokenizer(tokenizer, rows(FOREIGN[language]))
        assert said is not None and "docs/multilingual.md" in said


def real_texts(name: str) -> list[str]:
    if name == "English":
        with (DATA / "imdb" / "train.jsonl").open(encoding="utf-8") as file:
            return list(islice(file, 200))
    if name == "Spanish":
        lines = (DATA / "conll" / "esp.train").read_text("utf-8").split("\n\n")[:500]
        return [" ".join(line.split()[0] for line in text.splitlines() if line.split()) for text in lines]
    return (DATA / "multilingual" / f"{name.lower()}.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", ["English", "Spanish", "French", "Portuguese"])
def test_nothing_is_said_of_languages_in_latin_letters(name: str, modernbert: Any, bert_uncased: Any) -> None:
    texts = [text for text in real_texts(name) if text.strip()]
    assert remark_on_tokenizer(modernbert, rows(texts)) is None
    assert remark_on_tokenizer(bert_uncased, rows(texts)) is None


@pytest.mark.parametrize("make", [gemma, unigram])
def test_nothing_is_said_of_a_tokenizer_that_was_trained_on_the_language(make: Callable[..., Any]) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=make(corpus=CHINESE * 3, size=400), unk_token="<unk>"
    )
    assert remark_on_tokenizer(tokenizer, rows(CHINESE)) is None
    said = remark_on_tokenizer(tokenizer, rows(HINDI))
    assert said is not None and "no token for 100 %" in said


def test_a_tokenizer_of_single_characters_suits_chinese() -> None:
    """As bert-base-chinese is: one token for each character is no sign of anything there."""
    from tokenizers import BertWordPieceTokenizer

    letters = sorted(set("".join(CHINESE)))
    tokenizer = BertWordPieceTokenizer({letter: i for i, letter in enumerate(["[UNK]", "[CLS]", "[SEP]", *letters])})
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, unk_token="[UNK]")
    assert remark_on_tokenizer(wrapped, rows(CHINESE)) is None
    assert measure_fit(wrapped, CHINESE[:2]).unknown == 0


def test_signs_digits_and_emoji_say_nothing(modernbert: Any) -> None:
    assert remark_on_tokenizer(modernbert, rows(["🎬🍿🎬🍿🎬", "①②③ 1234 ★★★☆☆", "…", " "])) is None


def test_a_few_letters_say_nothing(modernbert: Any) -> None:
    assert measure_fit(modernbert, ["xq", "zq"]).tokens == 1
    assert remark_on_tokenizer(modernbert, rows(["xq", "zq"])) is None
    assert remark_on_tokenizer(modernbert, rows(["xq zq"] * 10)) is not None


def test_pairs_and_passages_are_looked_at_too(modernbert: Any) -> None:
    import datasets

    pairs = datasets.Dataset.from_dict({"texts": [["a film", text] for text in CHINESE], "target": [0.5] * 4})
    passages = datasets.Dataset.from_dict({"query": ["which film"] * 4, "passage": CHINESE, "query_id": [0] * 4})
    for data in (pairs, passages):
        said = remark_on_tokenizer(modernbert, data)
        assert said is not None and "no token for" in said and "影" in said


def test_the_command_says_it_before_it_trains(
    scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nopad.runtime.cli import run

    labelled = [{"text": text, "label": i % 2} for i, text in enumerate(CHINESE * 4)]
    data = write_jsonl(tmp_path / "rows.jsonl", labelled)
    options = ["--epochs", "1", "--max-length", "64", "--threads", "1", "--output", str(tmp_path / "out")]
    assert run(["train", "--from-scratch", str(scratch), "--train", str(data), *options]) == 0
    said = " ".join(capsys.readouterr().err.split())
    note = said.index("note: the tokenizer does not seem made for the language of these texts")
    assert note < said.index("epoch 1: ")
