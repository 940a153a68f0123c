"""Small tokenizers of the usual kinds, as files of a checkpoint folder. Helpers, no tests."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nopad.export.parity.samples import SAMPLES

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CORPUS = [*SAMPLES, "the film was good and the end was bad", "Alice works in Paris, Bob in London"] * 3


def frame(tokenizer: Tokenizer, first: str, last: str) -> None:
    """A template: `first` text `last`, and the second text of a pair with types of its own."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((first, last))],
    )


def wordpiece_vocabulary() -> list[str]:
    """BERT's special tokens, letters, and a few words of either case."""
    letters = string.ascii_letters + string.digits + string.punctuation + "éèüößñ中文"
    words = ("the", "a", "film", "Film", "good", "bad", "Alice", "works", "in", "Paris", "café", "cafe", "##s", "##ing")
    return list(dict.fromkeys([*BERT_SPECIAL, *letters, *(f"##{c}" for c in letters), *words]))


def wordpiece(*, lowercase: bool = False, special: bool = True) -> Tokenizer:
    """A BERT tokenizer; `special=False` leaves out template and special tokens."""
    vocab = {piece: i for i, piece in enumerate(wordpiece_vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if special:
        tokenizer.add_special_tokens(list(BERT_SPECIAL))
        frame(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def byte_level(*, special: bool = True, prefix: bool = False) -> Tokenizer:
    """Byte-level BPE, as ModernBERT (and RoBERTa, with a prefix space) has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"] if special else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if special:
        tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True)])
        frame(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def unigram(*, special: bool = True, corpus: Sequence[str] = CORPUS, size: int = 200) -> Tokenizer:
    """SentencePiece unigram with a metaspace and NFKC, as XLM-R and ModernBERT-Ja have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    # The order of ModernBERT-Ja: cls is neither bos nor what opens a text.
    names = ["<unk>", "<s>", "</s>", "<pad>", "<sep>", "<mask>", "<cls>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=names, unk_token="<unk>", max_piece_length=5, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if special:
        frame(tokenizer, "<s>", "</s>")
    return tokenizer


def gemma(*, corpus: Sequence[str] = CORPUS, size: int = 480) -> Tokenizer:
    """BPE with spaces as letters and bytes for unknown characters, as mmBERT has it from Gemma 2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]  # type: ignore[list-item]
    )
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=names[:5], show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    raw = json.loads(tokenizer.to_str())
    start = len(raw["model"]["vocab"])
    raw["model"]["vocab"] |= {byte: start + i for i, byte in enumerate(names[5:])}
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    frame(tokenizer, "<bos>", "<eos>")
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, config: dict[str, Any] | None) -> Path:
    """`tokenizer.json`, and `tokenizer_config.json` unless `config` is None."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


KINDS = {"wordpiece": wordpiece, "byte-level": byte_level, "unigram": unigram, "gemma": gemma}
