"""The reference of the parity gate: transformers' own model and tokenizer, one text at a time.

Deliberately shares no code with nopad's encoder, runtime or decoding, so that a fault there cannot hide here.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from nopad.export.errors import ExportError
from nopad.model.checkpoint import open_tokenizer
from nopad.model.errors import NopadError
from nopad.model.json_files import read_raw_config
from nopad.runtime.types import FloatArray, Text

CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "rerank": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "fill-mask": "AutoModelForMaskedLM",
    "embeddings": "AutoModel",
}


class Reference:
    """A checkpoint opened with transformers (fp32, SDPA, CPU)."""

    def __init__(self, folder: Path, task: str, *, pooling: str | None = None, normalize: bool = False) -> None:
        transformers.logging.disable_progress_bar()
        self.task = task
        self.pooling = pooling
        self.normalize = normalize
        raw = read_raw_config(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config, model = open_model(folder, task, raw)
            self.tokenizer = open_tokenizer(folder)
        self.tokenizer.model_max_length = 1 << 30  # lengths are given below; without, transformers only warns
        if self.tokenizer.pad_token is None:  # any token will do, it is masked
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(raw.get("pad_token_id") or 0)
        self.model: Any = model.float().eval()
        self._takes = set(inspect.signature(self.model.forward).parameters)  # not every model knows token types
        self.labels: tuple[str, ...] = tuple(config.id2label[i] for i in range(len(config.id2label)))
        self.problem_type: str | None = raw.get("problem_type")
        self.versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}

    @property
    def frame(self) -> tuple[int, int]:
        """First and last token id of any encoded text."""
        ids = self.tokenizer("a").input_ids
        return ids[0], ids[-1]

    def content_ids(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encode(self, text: Text, max_length: int) -> tuple[list[int], list[int] | None]:
        """Token ids and token types as transformers would feed them; None where its tokenizer makes no types."""
        parts = text if isinstance(text, tuple) else (text,)
        encoded = self.tokenizer(*parts, truncation=True, max_length=max_length)
        return list(encoded["input_ids"]), encoded.get("token_type_ids")

    def _forward(self, inputs: dict[str, Any]) -> Any:
        with torch.inference_mode():
            out = self.model(**{name: value for name, value in inputs.items() if name in self._takes})
        if self.task != "embeddings":
            return out.logits.float()
        hidden = out.last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        rows = (hidden * mask).sum(1) / mask.sum(1) if self.pooling == "mean" else hidden[:, 0]
        return torch.nn.functional.normalize(rows, dim=-1) if self.normalize else rows

    def logits(self, ids: Sequence[int], token_type_ids: Sequence[int] | None = None) -> FloatArray:
        """Logits of one token id sequence, float32 [num_labels], or [tokens, ...] for tasks per token."""
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        if token_type_ids is not None:
            inputs["token_type_ids"] = torch.tensor([token_type_ids])
        out: FloatArray = self._forward(inputs)[0].numpy()
        return out

    def batch_logits(
        self,
        texts: Sequence[str],
        max_length: int,
        batch_size: int = 32,
        progress: Callable[[int], None] = lambda done: None,
    ) -> FloatArray:
        """Logits of many texts as users get them by default: batches in order, padded to the longest."""
        rows = []
        for start in range(0, len(texts), batch_size):
            progress(start)
            batch = self.tokenizer(
                list(texts[start : start + batch_size]),
                truncation=True, max_length=max_length, padding=True, return_tensors="pt",
            )  # fmt: skip
            rows.append(self._forward(dict(batch)).numpy())
        return np.concatenate(rows)

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Scores as transformers' pipeline makes them for the checkpoint's `problem_type`."""
        tensor = torch.from_numpy(np.array(logits))
        if self.task in ("text-classification", "rerank"):
            if self.problem_type == "regression" and self.task != "rerank":
                return logits
            if self.problem_type == "multi_label_classification" or len(self.labels) == 1:
                return tensor.sigmoid().numpy()
        return tensor.softmax(-1).numpy()


def open_model(folder: Path, task: str, raw: dict[str, Any]) -> tuple[Any, Any]:
    """transformers' configuration and model for a task, every weight of it from the checkpoint; no code of its own.

    Raises `ExportError`.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _refuse_unread(folder, raw, config)
        if hasattr(config, "reference_compile"):
            config.reference_compile = False  # transformers 4 would compile, which needs a C compiler
        try:
            model, loading = _load(folder, task, config, "sdpa")
        except ValueError as error:
            if "attn_implementation" not in str(error) and "attention implementation" not in str(error):
                raise
            model, loading = _load(folder, task, config, "eager")  # DeBERTa and others have nothing else
    except NopadError:
        raise
    except Exception as error:  # what transformers raises for a folder it cannot take is of every kind
        raise ExportError(f"transformers {transformers.__version__} cannot open {folder}: {error}") from error
    # transformers makes up what is missing. A pooler (BERT's and its kin's) has no part in embeddings.
    missing = [name for name in loading["missing_keys"] if task != "embeddings" or "pooler" not in name]
    if missing:
        raise ExportError(f"{folder} has no weights for {task}: {', '.join(sorted(missing)[:3])} missing")
    return config, model


def _load(folder: Path, task: str, config: Any, attention: str) -> tuple[Any, dict[str, Any]]:
    loaded: tuple[Any, dict[str, Any]] = getattr(transformers, CLASSES[task]).from_pretrained(
        folder,
        config=config,
        attn_implementation=attention,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        trust_remote_code=False,
    )
    return loaded


def _refuse_unread(folder: Path, raw: dict[str, Any], config: Any) -> None:
    unread = unread_keys(raw, config)
    if unread:
        raise ExportError(
            f"transformers {transformers.__version__} ignores {unread} in {folder}/config.json, so it computes "
            "another model and cannot be the reference; use transformers 5"
        )


def unread_keys(raw: dict[str, Any], config: Any) -> str | None:
    """Which of ModernBERT's keys, as transformers 5 spells them, transformers 4 passes over to a wrong effect."""
    if not transformers.__version__.startswith("4.") or raw.get("model_type") != "modernbert":
        return None
    for index, kind in enumerate(raw.get("layer_types") or ()):
        if (kind == "full_attention") != (index % config.global_attn_every_n_layers == 0):
            return "layer_types"
    if raw.get("sliding_window") is not None:
        return "sliding_window"
    rope = raw.get("rope_parameters") or {}
    # Version 4 has other formulas for some kinds, and the same one for both kinds of layer.
    for key, entries in (("rope_scaling", [raw.get("rope_scaling")]), ("rope_parameters", rope.values())):
        if any(isinstance(e, dict) and e.get("rope_type", e.get("type", "default")) != "default" for e in entries):
            return key
    for kind, theta in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
        if (rope.get(kind) or {}).get("rope_theta", getattr(config, theta)) != getattr(config, theta):
            return "rope_parameters"
    return None
