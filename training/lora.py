"""LoRA: the layers stay as they are, and learn low-rank updates beside them (arXiv:2106.09685), through PEFT.

The head is trained in full. What a run writes is the merged checkpoint, and the adapter in a folder inside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from nopad.model.checkpoint.adapter import HEAD_FILE, HEAD_KEYS
from nopad.model.checkpoint.weights import ADAPTER_FILE
from nopad.model.encoder import PackedEncoder
from nopad.model.head import Task
from nopad.model.packages import importable, install_hint
from nopad.runtime.errors import EnvironmentProblem, UsageError
from nopad.training.optimizer import blocks
from nopad.training.recipe import Recipe

_NAME = "default"  # PEFT's, of a single adapter
_TYPES: dict[Task, str] = {
    "text-classification": "SEQ_CLS",
    "rerank": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "embeddings": "FEATURE_EXTRACTION",
}


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A trained adapter."""

    settings: Any  # peft.LoraConfig
    weights: dict[str, Tensor]  # by PEFT's names

    def write(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write it as PEFT does, into a new folder; beside it what `config` (config.json) says of labels."""
        self.settings.save_pretrained(folder)
        head = {key: config[key] for key in HEAD_KEYS if key in config}
        (folder / HEAD_FILE).write_text(json.dumps(head, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        save_file(self.weights, folder / ADAPTER_FILE, metadata={"format": "pt"})
        (folder / ADAPTER_FILE).chmod(0o644)  # safetensors writes 0600


def check_lora(recipe: Recipe, task: Task) -> None:
    """Raises `UsageError` for what does not go with LoRA, `EnvironmentProblem` where PEFT is missing."""
    if recipe.lora is None:
        return
    if recipe.freeze_layers is not None or recipe.layer_decay < 1:
        raise UsageError("--lora trains no layer itself; leave out --freeze-layers and --layer-decay")
    if task not in _TYPES:
        raise UsageError(f"--lora does not apply to --task {task}; leave it out")
    if not importable("peft"):
        raise EnvironmentProblem(f"--lora needs PEFT: {install_hint('lora')}")


def add_lora(encoder: PackedEncoder, recipe: Recipe) -> str:
    """Put an update of rank `recipe.lora` beside linear layers of the encoder's layers, and freeze all but the head.

    Returns what to say of it. Raises `UsageError` for `recipe.lora_modules` that are no linear layers.
    """
    from peft import inject_adapter_in_model

    inside = {id(module) for block in blocks(encoder) for module in block.modules()}
    linear = [
        name for name, module in encoder.named_modules() if isinstance(module, nn.Linear) and id(module) in inside
    ]
    chosen = _chosen(linear, recipe)
    for name, part in encoder.backbone().named_children():  # the norm at the end, too, as PEFT does it
        part.requires_grad_(name == "pooler")  # BERT's is a part of its classifier's head
    head = _trained(encoder)
    inject_adapter_in_model(_settings(encoder, recipe, chosen), encoder, adapter_name=_NAME)
    for name, parameter in encoder.named_parameters():  # PEFT has frozen all but its own
        if name in head:
            parameter.requires_grad_(True)
    trained, everything = (
        sum(map(Tensor.numel, tensors)) for tensors in (_trained(encoder).values(), encoder.parameters())
    )
    return (
        f"LoRA of rank {recipe.lora} beside {', '.join(_in_a_layer(chosen))}: {trained:,} of {everything:,} parameters "
        "are trained"
    )


def lora_settings(encoder: PackedEncoder, recipe: Recipe, base: str | None = None) -> Any:
    """The `peft.LoraConfig` of an encoder with updates; `base` is what was fine-tuned."""
    heads = sorted({name.rpartition(".")[0] for name in _trained(encoder) if ".lora_" not in name})
    settings = _settings(encoder, recipe, list(_updated(encoder)))
    settings.modules_to_save, settings.base_model_name_or_path, settings.inference_mode = heads or None, base, True
    return settings


def take_lora(encoder: PackedEncoder, recipe: Recipe, base: str | None) -> Adapter:
    """The adapter, merged into the encoder's weights and gone from its modules; `base` is what was fine-tuned."""
    settings = lora_settings(encoder, recipe, base)
    weights = {name: tensor for name, tensor in _trained(encoder).items() if ".lora_" not in name}
    for name, layer in _updated(encoder).items():
        for part in ("lora_A", "lora_B"):
            weights[f"{name}.{part}.weight"] = getattr(layer, part)[_NAME].weight
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, layer.get_base_layer())
    copies = {f"base_model.model.{name}": tensor.detach().cpu().clone() for name, tensor in weights.items()}
    return Adapter(settings=settings, weights=copies)


def _trained(encoder: PackedEncoder) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def _updated(encoder: PackedEncoder) -> dict[str, Any]:
    return {name: module for name, module in encoder.named_modules() if hasattr(module, "lora_A")}


def _in_a_layer(names: Iterable[str]) -> list[str]:
    """Names of modules without their layer's, each once: attn.Wqkv for model.layers.3.attn.Wqkv."""
    return list(dict.fromkeys(re.sub(r"^.*\.\d+\.", "", name) for name in names))


def _chosen(linear: Sequence[str], recipe: Recipe) -> list[str]:
    """Those of the linear layers that the recipe names, by the end of their names; all where it names none."""
    if recipe.lora_modules is None:
        return list(linear)
    chosen: set[str] = set()
    for end in recipe.lora_modules.split(","):
        found = {name for name in linear if f".{name}".endswith(f".{end.strip()}")}
        if not found:
            known = ", ".join(_in_a_layer(linear))
            raise UsageError(f"--lora-modules {end.strip()!r}: no linear layer of this model ends so; it has {known}")
        chosen |= found
    return [name for name in linear if name in chosen]


def _settings(encoder: PackedEncoder, recipe: Recipe, linear: Sequence[str]) -> Any:
    from peft import LoraConfig

    assert recipe.lora is not None
    return LoraConfig(
        r=recipe.lora,
        lora_alpha=recipe.lora_alpha or 2 * recipe.lora,
        lora_dropout=recipe.lora_dropout,
        target_modules=_in_a_layer(linear),  # PEFT takes the ends of names
        task_type=_TYPES[encoder.encoder_config.task],
    )
