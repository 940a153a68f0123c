"""Small data sets and configurations to train on, and the comparison with transformers. Helpers, no tests."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from repository import ROOT
from safetensors.torch import load_file
from torch import Tensor

from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.packing import pack

# Test modules of training import this module first, so that they are skipped where it cannot run.
for package in ("datasets", "sklearn", "accelerate"):
    pytest.importorskip(package, reason="training needs: pip install 'nopad[train]'")

WORDS = ["the", "film", "was", "long", "and", "its", "story", "told", "of", "people", "in", "town", "who", "went"]
WORDS += ["away", "to", "find", "old", "friends", "again"]
CONFIG: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "local_attention": 32,
    "global_attn_every_n_layers": 3,
    "classifier_pooling": "mean",
    "pad_token_id": 0,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
}


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of common words around a telling word; label 1 for 'good', 0 for 'bad'."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = draw.choices(WORDS, k=draw.randint(3, 30))
        words.insert(draw.randrange(len(words)), ("bad", "good")[i % 2])
        rows.append({"text": " ".join(words), "label": i % 2})
    draw.shuffle(rows)
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_scratch(folder: Path, texts: Path, **config: Any) -> Path:
    """config.json and a tokenizer trained on `texts` by the project's own script."""
    script = ROOT / "scripts" / "make_tokenizer.py"
    command = [sys.executable, str(script), str(texts), str(folder), "--vocab-size", "400"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def weight_difference(first: Path, second: Path) -> float:
    ours, theirs = weights(first), weights(second)
    assert set(ours) == set(theirs)
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def logits(folder: Path, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """nopad's and transformers' logits of a checkpoint folder for whole texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoder = load_checkpoint(folder).encoder
    rows = tokenizer(list(texts), truncation=True)["input_ids"]
    batch = pack(rows, multiple=encoder.encoder_config.block)
    names = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids")
    with torch.no_grad():
        ours = encoder(**{name: torch.from_numpy(getattr(batch, name)) for name in names})
        theirs = [model(input_ids=torch.tensor([row])).logits[0] for row in rows]
    return ours, torch.stack(theirs)
