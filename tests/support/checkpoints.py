"""Small random checkpoints with a tokenizer, as a user has them after training. Helpers, no tests."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from reference_models import CASES, Case, make_reference
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from nopad.export.parity.samples import PAIRS, SAMPLES

VOCAB_SIZE = 420
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")  # in the order of their ids, as reference_models has them
TEXTS = [*SAMPLES, *(text for pair in PAIRS for text in pair)]


def make_checkpoint(name: str, folder: Path, **config: Any) -> Case:
    """A checkpoint of a case of `CASES`, with `config` laid over its config.json, and a matching tokenizer."""
    case = CASES[name]
    case = dataclasses.replace(case, config={**case.config, "vocab_size": VOCAB_SIZE, **config})
    make_reference(case, folder)
    (_bpe if case.architecture == "modernbert" else _wordpiece)(folder)
    return case


def _bpe(folder: Path) -> None:
    """Byte-level BPE, as ModernBERT has it."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _tokenizer_config(folder, "PreTrainedTokenizerFast", 1024, model_input_names=["input_ids", "attention_mask"])


def _wordpiece(folder: Path) -> None:
    """A vocabulary alone, as BERT's first checkpoints have it."""
    letters = sorted({c for text in TEXTS for c in text.lower() if c.isascii() and not c.isspace()})
    words = sorted({word for text in TEXTS for word in text.lower().split() if word.isalpha() and word.isascii()})
    entries = [*SPECIAL, *letters, *(f"##{c}" for c in letters), *words][:VOCAB_SIZE]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    _tokenizer_config(folder, "BertTokenizer", 512)


def _tokenizer_config(folder: Path, kind: str, max_length: int, **more: Any) -> None:
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    config = {"tokenizer_class": kind, "model_max_length": max_length, "do_lower_case": True, **names, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
