"""Encoders as a manifest's `architecture` describes them."""

from __future__ import annotations

from typing import Any

from reference_models import BERT, MODERNBERT

from nopad.model.checkpoint.read_config import read_config

MODERNBERT_BASE: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_layers": 22,
    "num_heads": 12,
    "local_attention": 128,
    "local_layers": [i for i in range(22) if i % 3],
    "max_position_embeddings": 8192,
}
ARCHITECTURES = [
    MODERNBERT_BASE,
    read_config(MODERNBERT, task="embeddings"),
    read_config(BERT, task="embeddings"),
]
