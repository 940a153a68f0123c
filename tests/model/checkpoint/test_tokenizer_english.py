"""The figures of docs/multilingual.md: what English-only tokenizers make of Chinese."""

from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordPiece

DULL, SPLENDID = "这部电影很无聊", "这部电影太精彩了"


def test_english_tokenizers_do_not_know_chinese(imdb: Path) -> None:
    modernbert = Tokenizer.from_file(str(imdb.parent / "modernbert-tokenizer" / "tokenizer.json"))
    bert = BertWordPieceTokenizer(
        WordPiece.read_file(str(imdb.parent / "bert-base-uncased" / "vocab.txt")), lowercase=True
    )
    texts = [DULL, SPLENDID]
    assert [len(text) for text in texts] == [7, 8]
    assert [len(modernbert.encode(text, add_special_tokens=False).ids) for text in texts] == [10, 13]
    assert [bert.encode(text, add_special_tokens=False).tokens.count("[UNK]") for text in texts] == [6, 6]
