"""The reference of the parity gate: transformers' own model and tokenizer, one text at a time; for a folder of
sentence-transformers, that library (`nopad.export.reference.sentence_transformers`).

Deliberately shares no code with nopad's encoder, runtime or decoding, and reads the checkpoint's files by itself (it is
given a folder, not the `Checkpoint` that was exported), so that a fault there cannot hide here.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from nopad.export.errors import ExportError
from nopad.export.reference.sentence_transformers import (
    CrossEncoder,
    Embedder,
    model_options,
    open_cross_encoder,
    open_embedder,
)
from nopad.model.checkpoint.json_files import read_raw_config
from nopad.model.checkpoint.sentence_transformers import transformer_folder
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.model.errors import NopadError
from nopad.model.head import BARE
from nopad.runtime.types import FloatArray, Text

BATCH = 32  # texts of `batch_logits` that are padded together
CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "rerank": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "fill-mask": "AutoModelForMaskedLM",
    "embeddings": "AutoModel",
    "token-embeddings": "AutoModel",
}


class Reference:
    """A checkpoint opened with transformers (fp32, SDPA, CPU), and with sentence-transformers where that saved it.

    `overrides` (the manifest's) are the options of the export that overrule the folder's settings. `embedder` and
    `cross_encoder` are sentence-transformers' models of the folder, None for other folders; of token-embeddings the
    embedder has only the tokenizer, prompts and limit.
    """

    def __init__(self, folder: Path, task: str, *, overrides: Mapping[str, Any] | None = None) -> None:
        transformers.logging.disable_progress_bar()
        self.folder = folder
        self.task = task
        overrides = overrides or {}
        self.pooling = overrides.get("pooling", "mean")
        self.normalize = overrides.get("normalize") is True
        home = transformer_folder(folder)
        raw = read_raw_config(home)
        self.embedder: Embedder | None = None
        self.cross_encoder: CrossEncoder | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config, model = open_model(home, task, raw)
            if task in BARE and (folder / "modules.json").is_file():
                self.embedder = open_embedder(folder, overrides)
            elif task == "rerank" or (task == "text-classification" and _is_cross_encoder(folder, raw)):
                self.cross_encoder = open_cross_encoder(folder)
            self.tokenizer = self.embedder.tokenizer if self.embedder else open_tokenizer(home)
        if self.embedder is None:
            self.tokenizer.model_max_length = (
                1 << 30
            )  # callers pass lengths; by its own limit transformers would only warn
        if self.tokenizer.pad_token is None:  # any token will do, it is masked
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(raw.get("pad_token_id") or 0)
        self.model: Any = model.float().eval()
        self._parameters = set(inspect.signature(self.model.forward).parameters)  # not every model knows token types
        self.labels: tuple[str, ...] = tuple(str(config.id2label[i]) for i in range(len(config.id2label)))
        self.problem_type: str | None = raw.get("problem_type")
        self.versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
        for opened in (self.embedder, self.cross_encoder):
            self.versions |= opened.versions if opened else {}

    @property
    def frame(self) -> tuple[int, int]:
        """First and last token id of any encoded text."""
        ids = self.tokenizer("a").input_ids
        return ids[0], ids[-1]

    def content_ids(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def encode(self, text: Text, max_length: int) -> tuple[list[int], list[int] | None]:
        """Token ids and token types as transformers would feed them; None where its tokenizer makes no types."""
        encoded = self.tokenizer(*self._parts(text), truncation=True, max_length=max_length)
        return list(encoded["input_ids"]), encoded.get("token_type_ids")

    def _parts(self, text: Text) -> list[str]:
        """A text, or the two of a pair; the default prompt is before the first."""
        prompted = self.embedder or self.cross_encoder
        name = prompted.default_prompt_name if prompted else None
        prompt = prompted.prompts[name] if prompted and name is not None else ""
        first, *second = text if isinstance(text, tuple) else (text,)
        return [prompt + first, *second]

    def answer(self, text: Text, ids: Sequence[int], token_type_ids: Sequence[int] | None) -> FloatArray:
        """The checkpoint's answer to a text with these `ids`: by sentence-transformers' `encode` where that library
        opens the folder, else the `logits`.
        """
        if self.embedder is not None and self.task == "embeddings" and isinstance(text, str):
            row: FloatArray = self.embedder.encode([text])[0]
            return row
        return self.logits(ids, token_type_ids)

    def _forward(self, inputs: dict[str, Any]) -> Any:
        if self.embedder is not None and self.task == "embeddings":
            return self.embedder.rows(inputs)
        with torch.inference_mode():
            out = self.model(**{name: value for name, value in inputs.items() if name in self._parameters})
        if self.task not in BARE:
            return out.logits.float()
        hidden = out.last_hidden_state
        if self.task == "token-embeddings":
            return hidden
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

    def equal_length_logits(self, sequences: Sequence[Sequence[int]]) -> FloatArray:
        """Logits of token id sequences of one length, so without padding: float32 [sequences, ...]."""
        ids = torch.tensor(sequences)
        out: FloatArray = self._forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).numpy()
        return out

    def pair_logits(self, first: str, seconds: Sequence[str], max_length: int) -> list[FloatArray]:
        """Logits of one text paired with each of `seconds`."""
        return [self.logits(*self.encode((first, second), max_length)) for second in seconds]

    def batch_logits(
        self,
        texts: Sequence[Text],
        max_length: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> FloatArray:
        """Logits of many texts, or of many pairs, as users get them by default: batches in order, padded.

        For token classification [tokens of all texts, labels], each text without padding.
        """
        rows = []
        for start in range(0, len(texts), BATCH):
            progress(start)
            part = list(texts[start : start + BATCH])
            if self.task == "token-classification":
                rows += [self.logits(*self.encode(text, max_length)) for text in part]
                continue
            if self.embedder is not None:
                rows.append(self.embedder.encode([text for text in part if isinstance(text, str)]))
                continue
            columns = map(list, zip(*map(self._parts, part), strict=True))
            batch = self.tokenizer(
                *columns, truncation=True, max_length=max_length, padding=True, return_tensors="pt",
            )  # fmt: skip
            rows.append(self._forward(dict(batch)).numpy())
        return np.concatenate(rows)

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Scores as transformers' pipeline makes them for the checkpoint's `problem_type`."""
        tensor = torch.from_numpy(np.array(logits))
        if self.cross_encoder is not None:
            return self.cross_encoder.activate(tensor.unsqueeze(0))[0].numpy()
        if self.task in ("text-classification", "rerank"):
            if self.problem_type == "regression" and self.task != "rerank":
                return logits
            if self.problem_type == "multi_label_classification" or len(self.labels) == 1:
                return tensor.sigmoid().numpy()
        return tensor.softmax(-1).numpy()


def _is_cross_encoder(folder: Path, raw: Mapping[str, Any]) -> bool:
    """Whether sentence-transformers saved it: version 6 writes modules.json, older versions a key of config.json."""
    own = "sentence_transformers" in raw or "sbert_ce_default_activation_function" in raw
    return own or (folder / "modules.json").is_file()


def open_model(folder: Path, task: str, raw: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration and the model that transformers has for a task, every weight of it from the checkpoint.

    Raises `ExportError`.
    """
    try:
        config = open_config(folder, raw)
        loaded: tuple[Any, dict[str, Any]] = getattr(transformers, CLASSES[task]).from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
            **model_options(folder),
        )
    except NopadError:
        raise
    except Exception as error:  # transformers raises errors of any kind for a folder that it cannot take
        raise ExportError(f"transformers {transformers.__version__} cannot open {folder}: {error}") from error
    model, loading = loaded
    # transformers initialises missing weights at random. A pooler (of BERT and its like) has no part in embeddings.
    missing = [name for name in loading["missing_keys"] if task not in BARE or "pooler" not in name]
    if missing:
        raise ExportError(f"{folder} has no weights for {task}: {', '.join(sorted(missing)[:3])} missing")
    return config, model


def own_config(raw: dict[str, Any]) -> Any:
    """The configuration that transformers makes of a config.json. Raises `ExportError` where there is none."""
    try:
        return transformers.AutoConfig.for_model(**raw)
    except Exception as error:  # of any kind
        raise ExportError(
            f"transformers {transformers.__version__} cannot open a config.json of model_type "
            f"{raw.get('model_type')!r}: {error}"
        ) from error


def open_config(folder: Path, raw: dict[str, Any]) -> Any:
    """A folder's configuration (`raw`: its config.json). Raises `ExportError` where this transformers misreads it."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if hasattr(config, "reference_compile"):
        config.reference_compile = False  # transformers 4 would compile, which needs a C compiler
    unread = unread_keys(raw, config)
    if unread:
        raise ExportError(
            f"transformers {transformers.__version__} ignores {unread} in {folder}/config.json, so it computes "
            "another model and cannot be the reference; use transformers 5"
        )
    return config


def unread_keys(raw: dict[str, Any], config: Any) -> str | None:
    """The key of a ModernBERT saved by transformers 5 that transformers 4 ignores, and so computes another model."""
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
