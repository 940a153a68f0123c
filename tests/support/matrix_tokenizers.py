"""Small tokenizers of every kind in the matrix of checkpoints. Helpers, no tests.

Each writes `tokenizer.json` and `tokenizer_config.json` as the checkpoints of that kind have them; the ids of special
tokens are the true ones where they are small.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from checkpoints import TEXTS
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SIZE = 420
_BYTES = pre_tokenizers.ByteLevel.alphabet()


def _write(folder: Path, tokenizer: Tokenizer, kind: str, names: dict[str, str], **more: Any) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": kind, **names, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def _template(tokenizer: Tokenizer, single: str, pair: str, special: Sequence[str]) -> None:
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def _special_last(tokenizer: Tokenizer, token: str) -> None:
    tokenizer.add_special_tokens([AddedToken(token, lstrip=True, special=True)])


def byte_level(folder: Path) -> None:
    """ModernBERT's: byte-level BPE, [CLS] x [SEP]."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(show_progress=False, vocab_size=SIZE, special_tokens=special, initial_alphabet=_BYTES)
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    _template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ("[CLS]", "[SEP]"))
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    inputs = ["input_ids", "attention_mask"]
    _write(folder, tokenizer, "PreTrainedTokenizerFast", names, model_max_length=8192, model_input_names=inputs)


def llama3(folder: Path) -> None:
    """EuroBERT's: Llama 3's byte-level BPE, <|begin_of_text|> x <|end_of_text|>, which also pads."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|mask|>"]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(show_progress=False, vocab_size=SIZE, special_tokens=special, initial_alphabet=_BYTES)
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    begin, end, mask = special
    _template(tokenizer, f"{begin} $A {end}", f"{begin} $A {end} {begin} $B {end}", (begin, end))
    names = {"bos_token": begin, "eos_token": end, "pad_token": end, "mask_token": mask}
    inputs = ["input_ids", "attention_mask"]
    _write(folder, tokenizer, "PreTrainedTokenizerFast", names, model_max_length=8192, model_input_names=inputs)


def gemma(folder: Path) -> None:
    """mmBERT's: Gemma 2's BPE with byte fallback, <bos> x <eos>, where cls, eos and sep are one token."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(show_progress=False, vocab_size=SIZE + 200, special_tokens=special + fallback)
    tokenizer.train_from_iterator([text for text in TEXTS if text.isascii()] * 5, trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    _template(tokenizer, "<bos> $A <eos>", "<bos> $A <eos> $B <eos>", ("<bos>", "<eos>"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "cls_token": "<eos>", "sep_token": "<eos>"}
    names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    framed = {"add_bos_token": True, "add_eos_token": True}
    _write(folder, tokenizer, "GemmaTokenizerFast", names, model_max_length=8192, **framed)


def _unigram(special: Sequence[str], unknown: str, size: int = SIZE) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        show_progress=False, vocab_size=size, special_tokens=list(special), unk_token=unknown
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def unigram(folder: Path) -> None:
    """ModernBERT-Ja's: SentencePiece unigram, <cls> x <sep> with ids 6 and 4; Llama's class in its configuration."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "<sep>", "<mask>", "<cls>"]
    tokenizer = _unigram(special, "<unk>")
    _template(tokenizer, "<cls> $A <sep>", "<cls> $A <sep> $B <sep>", ("<cls>", "<sep>"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    names |= {"sep_token": "<sep>", "mask_token": "<mask>", "cls_token": "<cls>"}
    _write(folder, tokenizer, "LlamaTokenizerFast", names, model_max_length=10**30)


def characters(folder: Path) -> None:
    """A chemist's: characters of formulas, 82 entries."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = list("CNOSPFIBrclnosp=#()[]+-@/\\1234567890%.Hae tihdugwmfykvbx")
    vocabulary = {token: i for i, token in enumerate([*special, *dict.fromkeys(letters)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    _template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ("[CLS]", "[SEP]"))
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    _write(folder, tokenizer, "PreTrainedTokenizerFast", names)


def _wordpiece(folder: Path, special: dict[str, str], kind: str, limit: int, **more: Any) -> None:
    letters = sorted({c for text in TEXTS for c in text.lower() if c.isascii() and not c.isspace()})
    words = sorted({word for text in TEXTS for word in text.lower().split() if word.isalpha() and word.isascii()})
    entries = list(dict.fromkeys([*special.values(), *letters, *(f"##{c}" for c in letters), *words]))[:SIZE]
    unknown = special["unk_token"]
    tokenizer = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    first, last = special["cls_token"], special["sep_token"]
    second = (
        f"{last} $B:1 {last}:1" if kind.startswith(("Bert", "Electra", "PreTrained")) else f"{last} {last} $B {last}"
    )
    _template(tokenizer, f"{first} $A {last}", f"{first} $A {second}", (first, last))
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", "utf-8")
    _write(folder, tokenizer, kind, special, model_max_length=limit, do_lower_case=True, **more)


_BERT = {name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}


def wordpiece(folder: Path) -> None:
    """BERT's."""
    _wordpiece(folder, _BERT, "BertTokenizer", 512)


def distilbert(folder: Path) -> None:
    """DistilBERT's: BERT's without token types."""
    inputs = ["input_ids", "attention_mask"]
    _wordpiece(folder, _BERT, "PreTrainedTokenizerFast", 512, model_input_names=inputs)


def mpnet(folder: Path) -> None:
    """MPNet's: BERT's vocabulary between <s> and </s>; padding has the id 1."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    special |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    _wordpiece(folder, special, "MPNetTokenizer", 512, model_input_names=["input_ids", "attention_mask"])


_ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
_ROBERTA |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}


def roberta(folder: Path) -> None:
    """RoBERTa's: byte-level BPE, <s> x </s></s> y </s>, padding 1, the mask last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(show_progress=False, vocab_size=SIZE, special_tokens=special, initial_alphabet=_BYTES)
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    _special_last(tokenizer, "<mask>")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    _write(folder, tokenizer, "RobertaTokenizer", _ROBERTA, model_max_length=512)


def xlm_roberta(folder: Path) -> None:
    """XLM-R's: SentencePiece unigram behind <s>, <pad>, </s>, <unk>; the mask last."""
    tokenizer = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>")
    _special_last(tokenizer, "<mask>")
    _template(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>"))
    _write(folder, tokenizer, "XLMRobertaTokenizer", _ROBERTA, model_max_length=512)


def camembert(folder: Path) -> None:
    """CamemBERT's: XLM-R's with entries that nothing uses before <s> (5) and </s> (6)."""
    special = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    tokenizer = _unigram(special, "<unk>")
    _special_last(tokenizer, "<mask>")
    _template(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ("<s>", "</s>"))
    _write(folder, tokenizer, "CamembertTokenizer", _ROBERTA, model_max_length=512)


def deberta(folder: Path) -> None:
    """DeBERTa-v3's: SentencePiece unigram between [CLS] and [SEP], the mask last."""
    tokenizer = _unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[UNK]")
    _special_last(tokenizer, "[MASK]")
    _template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ("[CLS]", "[SEP]"))
    names = {**_BERT, "bos_token": "[CLS]", "eos_token": "[SEP]"}
    _write(folder, tokenizer, "DebertaV2Tokenizer", names, model_max_length=512, do_lower_case=False)


# As docs/checkpoints.md names them.
TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "byte-level BPE": byte_level,
    "Llama 3 BPE": llama3,
    "Gemma 2 BPE": gemma,
    "unigram": unigram,
    "characters": characters,
    "WordPiece": wordpiece,
    "WordPiece, no types": distilbert,
    "MPNet WordPiece": mpnet,
    "RoBERTa BPE": roberta,
    "XLM-R unigram": xlm_roberta,
    "CamemBERT unigram": camembert,
    "DeBERTa unigram": deberta,
}
