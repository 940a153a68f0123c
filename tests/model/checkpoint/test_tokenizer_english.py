"""The figures of docs/multilingual.md: what tokenizers of English make of Chinese, and what one of both makes of it."""

from pathlib import Path

from bilingual import DULL, SPLENDID, bilingual_rows
from small_tokenizers import gemma
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordPiece

TEXTS = [DULL, SPLENDID, "this film is very boring", "this film is splendid"]


def counts(tokenizer: Tokenizer) -> list[int]:
    return [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS]


def test_english_tokenizers_do_not_know_chinese(imdb: Path) -> None:
    modernbert = Tokenizer.from_file(str(imdb.parent / "modernbert-tokenizer" / "tokenizer.json"))
    bert = BertWordPieceTokenizer(
        WordPiece.read_file(str(imdb.parent / "bert-base-uncased" / "vocab.txt")), lowercase=True
    )
    assert [len(text) for text in TEXTS] == [7, 8, 24, 21]
    assert counts(modernbert) == [10, 13, 5, 4]
    assert counts(bert) == [7, 8, 5, 4]
    assert [bert.encode(text, add_special_tokens=False).tokens.count("[UNK]") for text in TEXTS] == [6, 6, 0, 0]


def test_a_tokenizer_of_mmberts_kind_learns_both() -> None:
    rows = bilingual_rows()
    assert len(rows) == 1052
    assert counts(gemma(corpus=[row["text"] for row in rows], size=400)) == [2, 2, 8, 4]
