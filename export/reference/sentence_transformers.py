"""The reference for folders of sentence-transformers: that library itself, or our reading of it where it is missing.

`Reading` follows the library's own source (6.2) on top of transformers. It shares nothing with the reader of
`model/checkpoint/`, so that a key overlooked there is not overlooked here too; the tests compare it with the library.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from tokenizers import normalizers

from nopad.export.errors import ExportError
from nopad.model.checkpoint.sentence_transformers import transformer_folder
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.runtime.types import FloatArray


class Embedder(Protocol):
    """An embedding model as users call it: `encode`, and the same from token ids."""

    tokenizer: Any
    max_length: int  # tokens that are read of a text
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    similarity_fn_name: str | None
    versions: Mapping[str, str]

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None) -> FloatArray:
        """Embeddings, float32 [texts, size]."""

    def rows(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Embeddings of the tokenizer's output, without a prompt."""


class CrossEncoder(Protocol):
    """A cross-encoder as users call it, on pairs of texts."""

    prompts: Mapping[str, str]
    default_prompt_name: str | None
    versions: Mapping[str, str]

    def predict(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """Scores, float32 [pairs, labels]."""

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [..., labels] -> scores."""


def open_embedder(folder: Path, overrides: Mapping[str, Any]) -> Embedder:
    """The reference of an embedding model's folder; `overrides` are the manifest's. Raises `ExportError`."""
    with _quiet(folder):
        return Library(folder, overrides) if _installed() and _follows(folder) else Reading(folder, overrides)


def open_cross_encoder(folder: Path) -> CrossEncoder:
    """The reference of a cross-encoder's folder. Raises `ExportError`."""
    with _quiet(folder):
        return LibraryCrossEncoder(folder) if _installed() else ReadingCrossEncoder(folder)


def _installed() -> bool:
    return importlib.util.find_spec("sentence_transformers") is not None


def _follows(folder: Path) -> bool:
    """Whether the installed library follows every setting of the folder.

    Before version 6 it ignores `truncate_dim`, excludes a prompt's tokens from some poolings only, and lower-cases
    special tokens too.
    """
    if int(_library_version()["sentence-transformers"].split(".")[0]) >= 6:
        return True
    paths = [module["path"] for module in json.loads((folder / "modules.json").read_text("utf-8"))]
    pooled = all(_json(folder / path / "config.json").get("include_prompt") is not False for path in paths)
    cased = _settings(folder / paths[0]).get("do_lower_case") is not True
    return pooled and cased and _json(folder / "config_sentence_transformers.json").get("truncate_dim") is None


@contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """Silence what both libraries log about a folder; their errors become `ExportError`."""
    logger = logging.getLogger("sentence_transformers")
    level, ours = logger.level, transformers.logging.get_verbosity()
    logger.setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # of any kind, for a folder that the library cannot take
        raise ExportError(f"sentence-transformers cannot open {folder}: {error}") from error
    finally:
        logger.setLevel(level)
        transformers.logging.set_verbosity(ours)


def _library_version() -> dict[str, str]:
    return {"sentence-transformers": importlib.metadata.version("sentence-transformers")}


def model_options(home: Path) -> dict[str, Any]:
    """How a reference opens a folder's model: in fp32, whatever dtype is stored, since the gate compares with fp32.

    PyTorch's own attention, eager where transformers has no other (DeBERTa, MPNet); no code of the checkpoint.
    """
    config_class = type(transformers.AutoConfig.from_pretrained(home, trust_remote_code=False))
    model_class = transformers.MODEL_MAPPING.get(config_class, None)
    attention = "sdpa" if getattr(model_class, "_supports_sdpa", True) else "eager"
    return {"dtype": torch.float32, "attn_implementation": attention, "use_safetensors": True}


class Library:
    """`Embedder` by the library's `SentenceTransformer`."""

    def __init__(self, folder: Path, overrides: Mapping[str, Any]) -> None:
        library: Any = importlib.import_module("sentence_transformers")
        self._model = library.SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            model_kwargs=model_options(transformer_folder(folder)),
        )
        self._model.float().eval()
        config = self._model[0].auto_model.config
        if hasattr(config, "reference_compile"):
            config.reference_compile = False
        self._normalize = overrides.get("normalize") is True
        if "max_length" in overrides:
            self._model.max_seq_length = overrides["max_length"]
        if "pooling" in overrides or overrides.get("normalize") is False:
            self._change(overrides)
        self.tokenizer = self._model.tokenizer
        self.max_length = min(int(self._model.max_seq_length), int(config.max_position_embeddings))
        self.prompts: Mapping[str, str] = dict(self._model.prompts)
        self.default_prompt_name = self._model.default_prompt_name
        self.similarity_fn_name: str | None = str(self._model.similarity_fn_name)
        self.versions: Mapping[str, str] = _library_version()

    def _change(self, overrides: Mapping[str, Any]) -> None:
        modules = self._model._modules
        for name, module in modules.items():
            if type(module).__name__ == "Pooling" and "pooling" in overrides:
                size = self._model[0].auto_model.config.hidden_size
                kept = {"include_prompt": module.include_prompt}
                modes = overrides["pooling"].split("+")
                modules[name] = type(module)(size, pooling_mode=modes if len(modes) > 1 else modes[0], **kept)
        while overrides.get("normalize") is False and type(modules[next(reversed(modules))]).__name__ == "Normalize":
            del modules[next(reversed(modules))]

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None) -> FloatArray:
        """As the library gives them, one text at a time.

        In a batch, texts are padded, by some tokenizers of transformers 4 on the left: [CLS] pooling then takes filler.
        """
        return np.asarray(
            self._model.encode(
                list(texts),
                batch_size=1,
                prompt_name=prompt_name,
                prompt=prompt,
                normalize_embeddings=self._normalize,
                show_progress_bar=False,
            ),
            dtype=np.float32,
        )

    def rows(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Through all modules of the library."""
        with torch.inference_mode():
            rows: torch.Tensor = self._model({**inputs})["sentence_embedding"]
        if self._model.truncate_dim is not None:
            rows = rows[:, : self._model.truncate_dim]
        return torch.nn.functional.normalize(rows, dim=-1) if self._normalize else rows


class LibraryCrossEncoder:
    """`CrossEncoder` by the library's own class of that name."""

    def __init__(self, folder: Path) -> None:
        library: Any = importlib.import_module("sentence_transformers")
        options = model_options(transformer_folder(folder))
        self._model = library.CrossEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
        self._model.model.float().eval()
        if hasattr(self._model.model.config, "reference_compile"):
            self._model.model.config.reference_compile = False
        self.prompts: Mapping[str, str] = dict(getattr(self._model, "prompts", {}))  # of version 6
        self.default_prompt_name = getattr(self._model, "default_prompt_name", None)
        self.versions: Mapping[str, str] = _library_version()

    def predict(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """As the library gives them, one column for one label."""
        scores = self._model.predict([list(pair) for pair in pairs], show_progress_bar=False)
        return np.asarray(scores, dtype=np.float32).reshape(len(pairs), -1)

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """By the library's activation."""
        scores: torch.Tensor = self._model.activation_fn(logits)
        return scores


def _json(path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return raw


def _settings(home: Path) -> dict[str, Any]:
    """The settings of a Transformer module, under whichever name."""
    kinds = "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"
    return next((raw for kind in kinds if (raw := _json(home / f"sentence_{kind}_config.json"))), {})


def _torch(name: str | None) -> torch.nn.Module | None:
    """An instance of a class of torch.nn, by its full name."""
    if name is None:
        return None
    if not name.startswith("torch.nn."):
        raise ExportError(f"{name} is not a class of torch.nn; the reference imports nothing else")
    module: torch.nn.Module = getattr(torch.nn, name.rsplit(".", 1)[-1])()
    return module


class Reading:
    """What `SentenceTransformer.encode` computes, on transformers' model and tokenizer."""

    def __init__(self, folder: Path, overrides: Mapping[str, Any]) -> None:
        self._folder = folder
        self._modules = json.loads((folder / "modules.json").read_text("utf-8"))
        home = folder / self._modules[0]["path"]
        about = _json(folder / "config_sentence_transformers.json")
        own = _settings(home)
        options = {**model_options(home), "local_files_only": True}
        self._encoder: Any = transformers.AutoModel.from_pretrained(home, **options).float().eval()
        if hasattr(self._encoder.config, "reference_compile"):
            self._encoder.config.reference_compile = False
        self.tokenizer = open_tokenizer(home)
        arguments = {**(own.get("tokenizer_args") or {}), **(own.get("processor_kwargs") or {})}
        limit = arguments.get("model_max_length") or own.get("max_seq_length") or self.tokenizer.model_max_length
        self.max_length = overrides.get("max_length") or min(limit, self._encoder.config.max_position_embeddings)
        if own.get("do_lower_case") is True:
            backend = self.tokenizer.backend_tokenizer
            parts = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
            backend.normalizer = normalizers.Sequence(parts)
        self.prompts: Mapping[str, str] = {"query": "", "document": ""} | {
            k: v or "" for k, v in (about.get("prompts") or {}).items()
        }
        self.default_prompt_name = about.get("default_prompt_name")
        self.similarity_fn_name: str | None = about.get("similarity_fn_name") or "cosine"
        self._truncate = about.get("truncate_dim")
        self._overrides = overrides
        self.versions: Mapping[str, str] = {}

    def _tokenize(self, texts: Sequence[str]) -> dict[str, Any]:
        return dict(
            self.tokenizer(list(texts), truncation=True, max_length=self.max_length, padding=True, return_tensors="pt")
        )

    def encode(self, texts: Sequence[str], *, prompt_name: str | None = None, prompt: str | None = None) -> FloatArray:
        """One text at a time."""
        if prompt is None:
            name = prompt_name or self.default_prompt_name
            prompt = "" if name is None else self.prompts[name]
        skip = 0
        if prompt:
            ids = self._tokenize([prompt])["input_ids"][0]
            skip = len(ids) - int(int(ids[-1]) in self.tokenizer.all_special_ids)
        return np.concatenate([self.rows(self._tokenize([prompt + text]), skip).numpy() for text in texts])

    def rows(self, inputs: dict[str, Any], skip: int = 0) -> torch.Tensor:
        """Embeddings of the tokenizer's output; `skip`: tokens of the prompt."""
        parameters = inspect.signature(self._encoder.forward).parameters
        mask = inputs["attention_mask"]
        with torch.inference_mode():
            arguments = {name: value for name, value in inputs.items() if name in parameters}
            tokens = self._encoder(**arguments).last_hidden_state
            row = None
            unit = self._overrides.get("normalize")
            modules = self._modules[1:]
            while unit is False and modules[-1]["type"].endswith(".Normalize"):
                modules = modules[:-1]
            for module in modules:
                kind, path = module["type"].rsplit(".", 1)[-1], self._folder / module["path"]
                raw = _json(path / "config.json")
                if kind == "Pooling":
                    row = self._pool(raw, tokens, mask, skip)
                elif raw.get("module_input_name") == "token_embeddings":
                    tokens = _apply(kind, raw, path, tokens)
                elif row is not None:
                    row = _apply(kind, raw, path, row)
            assert row is not None
            row = row if self._truncate is None else row[:, : self._truncate]
            return torch.nn.functional.normalize(row, dim=-1) if unit else row

    def _pool(self, raw: Mapping[str, Any], tokens: torch.Tensor, mask: torch.Tensor, skip: int) -> torch.Tensor:
        flags = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens",
                 "mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens",
                 "lasttoken": "lasttoken"}  # fmt: skip
        modes = raw.get("pooling_mode") or [m for m, flag in flags.items() if raw.get(f"pooling_mode_{flag}")] or "mean"
        if "pooling" in self._overrides:
            modes = self._overrides["pooling"].split("+")
        skip = 0 if raw.get("include_prompt", True) else skip
        rows = []
        for row, length in zip(tokens, mask.sum(1).tolist(), strict=True):  # without padding, one text after the other
            kept = row[skip:length]
            places = torch.arange(skip + 1, length + 1).unsqueeze(1).float()
            pooled = {
                "cls": kept[0] if len(kept) else row[0],
                "max": kept.amax(0),
                "mean": kept.sum(0) / max(len(kept), 1e-9),
                "mean_sqrt_len_tokens": kept.sum(0) / max(len(kept), 1e-9) ** 0.5,
                "weightedmean": (kept * places).sum(0) / places.sum().clamp(min=1e-9),
                "lasttoken": row[length - 1],
            }
            rows.append(torch.cat([pooled[mode] for mode in ([modes] if isinstance(modes, str) else modes)]))
        return torch.stack(rows)


def _apply(kind: str, raw: Mapping[str, Any], path: Path, x: torch.Tensor) -> torch.Tensor:
    from safetensors.torch import load_file

    f = torch.nn.functional
    if kind == "Normalize":
        return f.normalize(x, dim=-1)
    if kind == "Dropout":
        return x
    weights = load_file(path / "model.safetensors")
    if kind == "LayerNorm":
        return f.layer_norm(x, x.shape[-1:], weights["norm.weight"], weights["norm.bias"])
    if kind != "Dense":
        raise ExportError(f"the reference has no module {kind}; install sentence-transformers")
    activation = _torch(raw.get("activation_function", "torch.nn.Tanh"))
    out = f.linear(x, weights["linear.weight"], weights.get("linear.bias"))
    out = out if activation is None else activation(out)
    if raw.get("use_residual"):
        out = out + (f.linear(x, weights["residual.weight"]) if "residual.weight" in weights else x)
    return out


class ReadingCrossEncoder:
    """What `CrossEncoder.predict` computes, on transformers' model and tokenizer."""

    def __init__(self, folder: Path) -> None:
        modules = folder / "modules.json"
        home = folder / json.loads(modules.read_text("utf-8"))[0]["path"] if modules.is_file() else folder
        self._model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
            home, **model_options(home), local_files_only=True
        )
        self._model.float().eval()
        config = _json(home / "config.json")
        about, own = _json(folder / "config_sentence_transformers.json"), config.get("sentence_transformers") or {}
        activation = about.get("activation_fn") or own.get("activation_fn")
        activation = activation or (
            config.get("sbert_ce_default_activation_function") if "activation_fn" not in own else None
        )
        default = torch.nn.Sigmoid() if self._model.config.num_labels == 1 else torch.nn.Identity()
        self._activation: Any = _torch(activation) or default
        saved = about if about.get("model_type") == "CrossEncoder" else {}
        self.prompts: Mapping[str, str] = {name: prompt or "" for name, prompt in (saved.get("prompts") or {}).items()}
        self.default_prompt_name = saved.get("default_prompt_name")
        self._tokenizer = open_tokenizer(home)
        self._limit = min(self._tokenizer.model_max_length, self._model.config.max_position_embeddings)
        self.versions: Mapping[str, str] = {}

    def predict(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """One pair at a time."""
        parameters = inspect.signature(self._model.forward).parameters
        before = self.prompts.get(self.default_prompt_name or "", "")
        scores = []
        for first, second in pairs:
            encoded = self._tokenizer(
                before + first, second, truncation=True, max_length=self._limit, return_tensors="pt"
            )
            with torch.inference_mode():
                logits = self._model(**{k: v for k, v in encoded.items() if k in parameters}).logits
            scores.append(self.activate(logits)[0])
        return torch.stack(scores).numpy()

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """By the activation that the folder names."""
        scores: torch.Tensor = self._activation(logits)
        return scores
