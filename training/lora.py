"""LoRA: the layers stay as they are, and learn low-rank updates beside them (arXiv:2106.09685), through PEFT.

The head is trained in full. What a run writes is the merged checkpoint, and the adapter in a folder inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

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

    def write(self, folder: Path) -> None:
        """Write it as PEFT does, into a folder that does not exist yet."""
        self.settings.save_pretrained(folder)
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


def add_lora(encoder: PackedEncoder, recipe: Recipe) -> None:
    """Put an update of rank `recipe.lora` beside every linear layer of the encoder's layers, and freeze these."""
    from peft import inject_adapter_in_model

    inside = {id(module) for block in blocks(encoder) for module in block.modules()}
    linear = [
        name for name, module in encoder.named_modules() if isinstance(module, nn.Linear) and id(module) in inside
    ]
    for block in blocks(encoder):
        block.requires_grad_(False)
    head = _trained(encoder)
    inject_adapter_in_model(_settings(encoder, recipe, linear), encoder, adapter_name=_NAME)
    for name, parameter in encoder.named_parameters():  # PEFT has frozen all but its own
        if name in head:
            parameter.requires_grad_(True)


def take_lora(encoder: PackedEncoder, recipe: Recipe, base: str | None) -> Adapter:
    """The adapter, merged into the encoder's weights and gone from its modules; `base` is what was fine-tuned."""
    layers = {name: module for name, module in encoder.named_modules() if hasattr(module, "lora_A")}
    weights = {name: tensor for name, tensor in _trained(encoder).items() if ".lora_" not in name}
    heads = sorted({name.rpartition(".")[0] for name in weights})
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            weights[f"{name}.{part}.weight"] = getattr(layer, part)[_NAME].weight
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, layer.get_base_layer())
    settings = _settings(encoder, recipe, list(layers), heads=heads, base=base)
    copies = {f"base_model.model.{name}": tensor.detach().cpu().clone() for name, tensor in weights.items()}
    return Adapter(settings=settings, weights=copies)


def _trained(encoder: PackedEncoder) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def _settings(
    encoder: PackedEncoder, recipe: Recipe, linear: Sequence[str], heads: Sequence[str] = (), base: str | None = None
) -> Any:
    from peft import LoraConfig

    assert recipe.lora is not None
    return LoraConfig(
        r=recipe.lora,
        lora_alpha=recipe.lora_alpha or 2 * recipe.lora,
        lora_dropout=recipe.lora_dropout,
        target_modules=list(linear),
        modules_to_save=list(heads) or None,
        task_type=_TYPES[encoder.encoder_config.task],
        base_model_name_or_path=base,
        inference_mode=bool(heads or base),
    )
