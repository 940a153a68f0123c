"""What tokenizers make of many languages: docs/multilingual.md's table.

The texts are the translations that a Django wheel holds (`pip download --no-deps django==5.2`), about 90 languages.

    python scripts/measure_tokenizers.py Django-5.2-py3-none-any.whl TOKENIZER [TOKENIZER ...]

A TOKENIZER is a folder that transformers opens, or a vocab.txt of BERT's.
"""

from __future__ import annotations

import gettext
import io
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import transformers

from nopad.training.tokenizer_fit import measure_fit

_CATALOG = re.compile(r"django/(?:conf|contrib/\w+)/locale/(\w+)/LC_MESSAGES/django\.mo")
_NO_WORDS = re.compile(r"%\(\w+\)\w|%\w|<[^>]*>|\{\w*\}")  # what is filled in, and tags
_FEWEST = 2500  # characters of a language


def translations(wheel: Path) -> dict[str, list[str]]:
    """Sentences of each language, without those that were left in English."""
    found: dict[str, list[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if match := _CATALOG.fullmatch(name):
                catalog = gettext.GNUTranslations(io.BytesIO(archive.read(name)))._catalog  # type: ignore[attr-defined]
                texts = (text for key, text in catalog.items() if isinstance(text, str) and key and text != key)
                found.setdefault(match[1], []).extend(_NO_WORDS.sub("", text) for text in texts)
    return {language: texts for language, texts in sorted(found.items()) if sum(map(len, texts)) > _FEWEST}


def open_tokenizer(path: Path) -> Any:
    if path.is_dir():
        return transformers.AutoTokenizer.from_pretrained(path)
    from tokenizers import BertWordPieceTokenizer

    made = BertWordPieceTokenizer(str(path), lowercase=True)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, unk_token="[UNK]")


def main() -> None:
    wheel, *tokenizers = map(Path, sys.argv[1:])
    opened = [open_tokenizer(path) for path in tokenizers]
    print("language: letters without a token, tokens a letter, tokens a character;", ", ".join(map(str, tokenizers)))
    for language, texts in translations(wheel).items():
        cells = []
        for tokenizer in opened:
            fit = measure_fit(tokenizer, texts)
            tokens = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) / sum(map(len, texts))
            cells.append(f"{fit.unknown:.3f} {'-' if fit.tokens is None else f'{fit.tokens:.2f}':>4} {tokens:.2f}")
        print(f"{language:8}", " | ".join(cells))


if __name__ == "__main__":
    main()
