"""A LoRA adapter as PEFT saves it: its settings, its base, and its merge into the encoder's weights in fp32.

The formulas are those of `peft/tuners/lora/layer.py`, `dora.py` (LoRA: arXiv:2106.09685, rank-stabilised:
arXiv:2312.03732, DoRA: arXiv:2402.09353). PEFT itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nopad.model.checkpoint.hub import resolve_checkpoint
from nopad.model.checkpoint.json_files import read_json
from nopad.model.checkpoint.read_head import CROSS_ENCODER_KEYS
from nopad.model.checkpoint.weights import ADAPTER_FILE, Match, plain_name, read_tensors, stored_weights
from nopad.model.encoder import PackedEncoder
from nopad.model.errors import CheckpointError

SETTINGS_FILE = "adapter_config.json"
# What nopad writes beside an adapter. Not into a config.json: with one, transformers takes a folder for a whole model.
HEAD_FILE = "nopad_head.json"
HEAD_KEYS = ("id2label", "label2id", "num_labels", "problem_type", *CROSS_ENCODER_KEYS)  # of a config.json
_SUFFIX = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification", "FEATURE_EXTRACTION": "Model"}
_CLASS_END = re.compile(r"(For[A-Z]\w+|Model)$")
# Settings of PEFT that change nothing once the weights are trained, or that are read below.
_KNOWN = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core", "modules_to_save"),
    *("peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config"),
    *("target_modules", "task_type", "use_dora", "use_rslora"),
}
# These initialisations change the base's weights, too; PEFT repeats that when it loads the adapter.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
_HEADS = ("classifier.weight", "score.weight")
_EMBEDDINGS = ("tok_embeddings.weight", "word_embeddings.weight", "embed_tokens.weight")
_RECIPE = (
    "merge it with PEFT: AutoPeftModelFor...from_pretrained(DIR).merge_and_unload().save_pretrained(OUT), save the "
    "tokenizer to OUT, too, and give OUT"
)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter's folder and settings."""

    folder: Path
    settings: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """Its weights."""
        return self.folder / ADAPTER_FILE

    def scale(self, module: str, rank: int) -> float:
        """What the product B A of `module`, of rank `rank`, is multiplied by."""
        alpha = self.settings.get("lora_alpha", 8)
        for pattern, value in (self.settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return float(alpha) / (rank**0.5 if self.settings.get("use_rslora") else rank)


def read_adapter(folder: Path) -> Adapter | None:
    """The adapter in `folder`; None where there is none. Raises `CheckpointError` for one that cannot be merged."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return None
    settings = read_json(path, dict)
    base, kind = settings.get("base_model_name_or_path"), settings.get("peft_type")
    if kind is None:
        model = settings.get("model_name") or base
        raise CheckpointError(
            f"{folder} is an adapter ({SETTINGS_FILE} of {model}), but not PEFT's (it names no peft_type); merge "
            "it into its model with the library that made it, and give the merged model's folder"
        )
    if "PROMPT" in str(kind) or str(kind) in ("PREFIX_TUNING", "P_TUNING"):
        raise CheckpointError(
            f"{folder} is a PEFT adapter of {base} of the kind {kind}: it puts learned vectors before every text, "
            "which cannot be merged into the weights, and nopad does not serve it"
        )
    if kind != "LORA":
        raise CheckpointError(f"{folder} is a PEFT adapter of {base} of the kind {kind}; nopad merges LORA. {_RECIPE}")
    initial = settings.get("init_lora_weights", True)
    if isinstance(initial, str) and initial.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(f"{folder} is a LoRA adapter that changes its base ({initial}); {_RECIPE}")
    unknown = [key for key, value in settings.items() if value and key not in _KNOWN]
    if unknown:
        raise CheckpointError(f"{folder}/{SETTINGS_FILE}: nopad does not merge {', '.join(unknown)}; {_RECIPE}")
    task_type = settings.get("task_type")
    if task_type not in (None, *_SUFFIX):
        raise CheckpointError(
            f"{folder} is a LoRA adapter of {base} for {task_type}; nopad has {', '.join(_SUFFIX)}, with encoders"
        )
    return Adapter(folder=folder, settings=settings)


def find_base(adapter: Adapter, explicit: str | Path | None = None) -> Path:
    """The folder of the adapter's base: `explicit`, else the folder or Hub name that the adapter gives.

    A relative path is looked for beside the adapter and in the current folder. Raises `CheckpointError`.
    """
    name = adapter.settings.get("base_model_name_or_path")
    if explicit is not None:
        base = resolve_checkpoint(explicit)
        if (base / SETTINGS_FILE).is_file():
            raise CheckpointError(
                f"{base} is an adapter, too; --base is the model that {adapter.folder} was trained on"
            )
        return base
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{adapter.folder} is a LoRA adapter that does not name its base; name it with --base DIR"
        )
    for candidate in (adapter.folder / name, adapter.folder.parent / name, Path(name)):
        if (candidate / "config.json").is_file() and candidate.resolve() != adapter.folder.resolve():
            return candidate
    try:
        if adapter.settings.get("revision") not in (None, "main"):
            raise CheckpointError(f"the adapter asks for its revision {adapter.settings['revision']}")
        return resolve_checkpoint(name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter.folder} is a LoRA adapter of {name}, which cannot be found ({error}). Name the base's folder "
            f"with --base DIR, or {_RECIPE}"
        ) from None


def adapted_config(adapter: Adapter, raw: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The base's config.json `raw` changed by the adapter, and remarks on what had to be guessed.

    The class follows from `task_type`; the number of labels and the vocabulary from the weights that the adapter saved
    whole; the labels' names from `HEAD_FILE` or a config.json beside the adapter, or from the base if it has as many.
    """
    config = dict(raw)
    suffix = _SUFFIX.get(str(adapter.settings.get("task_type")))
    names = config.get("architectures")
    if suffix and isinstance(names, list) and names:
        config["architectures"] = [_CLASS_END.sub("", str(names[0])) + suffix]
    for file in (adapter.folder / "config.json", adapter.folder / HEAD_FILE):
        beside = read_json(file, dict) if file.is_file() else {}
        config |= {key: beside[key] for key in HEAD_KEYS if key in beside}
    remarks: tuple[str, ...] = ()
    for name, stored in stored_weights([adapter.file]).items():
        plain, part = plain_name(name)
        if part or not stored.shape:
            continue
        if plain.endswith(_EMBEDDINGS):
            config["vocab_size"] = stored.shape[0]
        labels = config.get("id2label") or range(int(config.get("num_labels") or 2))
        if plain.endswith(_HEADS) and suffix != "Model" and len(labels) != stored.shape[0]:
            config["id2label"] = {str(i): f"LABEL_{i}" for i in range(stored.shape[0])}
            config["label2id"] = {label: int(i) for i, label in config["id2label"].items()}
            remarks = (
                f"the adapter's classifier has {stored.shape[0]} outputs, and neither it nor its base names them: they "
                "are LABEL_0, LABEL_1, ...; put a config.json with id2label beside the adapter",
            )
    return config, remarks


def check_parts(
    adapter: Adapter | None, folder: Path, matches: Mapping[str, Match], files: Iterable[Path], *, other_head: bool
) -> None:
    """Refuse adapter weights that match nothing in the encoder, or that have no adapter_config.json.

    With `other_head`, its classifier may have been left out.
    """
    for name in stored_weights(files):
        plain, part = plain_name(name)
        # BERT's pooler has no part in embeddings.
        if "pooler.dense." in plain or (other_head and ".classifier." in plain and not part):
            continue
        if part and adapter is None:
            raise CheckpointError(
                f"the weights of {folder} are PEFT's own state dict ({name}): the adapter is not merged, and without "
                f"its {SETTINGS_FILE} lora_alpha is unknown. Copy that beside the weights, or save the merged model: "
                "model.merge_and_unload().save_pretrained(DIR)"
            )
        if adapter is not None and plain and name not in matches and (part or adapter.file.is_file()):
            raise CheckpointError(
                f"the adapter in {folder} holds {name!r}, which is not part of the model: it was trained on another "
                f"base or another class, or is unknown to nopad; {_RECIPE}"
            )


def merge(encoder: PackedEncoder, adapter: Adapter, files: Iterable[Path], matches: Mapping[str, Match]) -> None:
    """Add the adapter's low-rank updates to the encoder's weights, in place. Raises `CheckpointError`."""
    state = encoder.state_dict()
    parts: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, str] = {}
    for name, tensor in read_tensors(files, lambda opened, name: opened.get_tensor(name)):
        if name in matches and matches[name].part:
            match = matches[name]
            if match.part in parts.setdefault(match.target, {}):
                raise CheckpointError(f"{adapter.folder} holds several adapters ({name}); {_RECIPE}")
            parts[match.target][match.part] = tensor.float()
            modules[match.target] = plain_name(name)[0].removeprefix("base_model.model.").removesuffix(".weight")
    for target, tensors in parts.items():
        try:
            _merge_weight(state, target, tensors, lambda rank, module=modules[target]: adapter.scale(module, rank))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the adapter in {adapter.folder} does not fit {target!r} of shape {tuple(state[target].shape)} "
                f"({str(error).splitlines()[0]}): it was trained on another base, or is cut short"
            ) from None


def _merge_weight(state: Mapping[str, Tensor], target: str, tensors: Mapping[str, Tensor], scale: Any) -> None:
    weight = state[target]
    if "lora_embedding_A" in tensors:
        if "lora_magnitude_vector" in tensors:
            raise RuntimeError("DoRA of embeddings is not merged here")
        a, b = tensors["lora_embedding_A"], tensors["lora_embedding_B"]
        weight += (b @ a).T * scale(a.shape[0])
        return
    a, b = tensors["lora_A"], tensors["lora_B"]
    factor = scale(a.shape[0])
    merged = weight + (b @ a) * factor
    if "lora_magnitude_vector" in tensors:  # DoRA: the rows keep the length that was learned for them
        merged = tensors["lora_magnitude_vector"].view(-1, 1) / torch.linalg.norm(merged, dim=1, keepdim=True) * merged
    weight.copy_(merged)
    if "lora_B.bias" in tensors:
        state[target.removesuffix("weight") + "bias"].add_(tensors["lora_B.bias"] * factor)
