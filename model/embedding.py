"""From hidden states to embeddings: pooling, and the modules of sentence-transformers around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nopad.model.attention import PackedLayout
from nopad.model.backbone import Linear, Norm
from nopad.model.config import EmbeddingModule, EncoderConfig
from nopad.model.errors import CheckpointError


def reads_first_tokens(config: EncoderConfig) -> bool:
    """Whether the head reads each sequence's first token, and no other."""
    per_sequence = config.task in ("text-classification", "rerank", "embeddings")
    return per_sequence and config.include_prompt and config.pooling in ("cls", "pooler")


def pool(hidden: Tensor, layout: PackedLayout, pooling: str, prompt_lengths: Tensor | None = None) -> Tensor:
    """One fp32 row per sequence, [B, hidden_size]: its first token (`cls`, `pooler`), or as `POOLING_MODES` says.

    Several modes, joined with "+", are concatenated. `prompt_lengths` [B]: the number of tokens to
    leave out at the beginning of each sequence (sentence-transformers' `modules/pooling.py`).
    """
    hidden = hidden.float()
    valid = layout.pad_index >= 0
    if prompt_lengths is None:
        if pooling in ("cls", "pooler"):
            return hidden if layout.first_tokens else hidden[layout.pad_index[:, 0]]
        kept = valid
    else:
        kept = valid & (torch.arange(valid.shape[1], device=valid.device) >= prompt_lengths.unsqueeze(1))
    mask = kept.unsqueeze(-1).to(hidden.dtype)
    padded = hidden[layout.pad_index.clamp(min=0)]
    rows = padded * mask
    if prompt_lengths is None and pooling == "mean":
        return rows.sum(1) / mask.sum(1)
    count = mask.sum(1).clamp(min=1e-9)
    lengths = valid.sum(1)
    parts = []
    for mode in pooling.split("+"):
        if mode == "cls":
            first = torch.zeros_like(lengths)
            if prompt_lengths is not None:  # where no token is left, the very first
                first = torch.where(prompt_lengths < lengths, prompt_lengths, first)
            parts.append(hidden[layout.pad_index.gather(1, first.unsqueeze(1)).squeeze(1)])
        elif mode == "lasttoken":
            parts.append(rows.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, rows.shape[-1])).squeeze(1))
        elif mode == "max":
            parts.append(padded.masked_fill(mask == 0, torch.finfo(padded.dtype).min).amax(1))
        elif mode == "weightedmean":
            weights = mask * torch.arange(1, valid.shape[1] + 1, device=hidden.device, dtype=hidden.dtype).unsqueeze(1)
            parts.append((padded * weights).sum(1) / weights.sum(1).clamp(min=1e-9))
        else:
            parts.append(rows.sum(1) / (count if mode == "mean" else count.sqrt()))
    return torch.cat(parts, dim=-1)


class _Dense(nn.Module):
    def __init__(self, module: EmbeddingModule) -> None:
        super().__init__()
        self.linear = Linear(module.in_features, module.out_features, bias=module.bias)
        self.activation = getattr(nn, module.activation)()
        self.adds = module.residual
        if module.residual and module.in_features != module.out_features:
            self.residual = Linear(module.in_features, module.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(x))
        if self.adds:
            out = out + (self.residual(x) if hasattr(self, "residual") else x)
        return out


class _LayerNorm(nn.Module):
    def __init__(self, module: EmbeddingModule) -> None:
        super().__init__()
        self.norm = Norm(module.in_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


class _Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


def build_modules(config: EncoderConfig) -> nn.ModuleList:
    """The modules around the pooling; parameter names are those in sentence-transformers' files."""
    kinds = {"Dense": _Dense, "LayerNorm": _LayerNorm, "Normalize": lambda module: _Normalize()}
    return nn.ModuleList(kinds[module.kind](module) for module in config.modules)


def check_modules(config: EncoderConfig) -> None:
    """Refuse modules whose sizes do not match. Raises `CheckpointError`."""
    size = config.hidden_size
    pooled = False
    for module in config.modules:
        if not module.of_tokens and not pooled:
            size, pooled = size * len(config.pooling.split("+")), True
        if module.in_features and module.in_features != size:
            raise CheckpointError(
                f"the module {module.kind} takes rows of {module.in_features} elements, but gets rows of {size} "
                f"(pooling {config.pooling})"
            )
        size = module.out_features or size


def load_modules(modules: nn.ModuleList, folder: Path, paths: Sequence[str]) -> None:
    """Load each module's weights from its folder in a checkpoint. Raises `CheckpointError`."""
    for module, path in zip(modules, paths, strict=False):  # a Normalize at the end may have been left out
        state = module.state_dict()
        if not state:
            continue
        file = folder / path / "model.safetensors"
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: nopad reads a module's weights as safetensors only. Convert them once, where you "
                "trust the files: SentenceTransformer(DIR).save_pretrained(NEW_DIR)"
            )
        try:
            stored = load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged or cut short ({error}); copy or save it again") from None
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if shapes != expected:
            raise CheckpointError(f"{file} holds {shapes}, its config.json asks for {expected}")
        module.load_state_dict(stored)


def embed(hidden: Tensor, layout: PackedLayout, config: EncoderConfig, modules: nn.ModuleList) -> Tensor:
    """Hidden states [T, hidden_size] -> embeddings, fp32 [B, embedding_size]; for token-embeddings [T, hidden_size]."""
    if config.task == "token-embeddings":
        return hidden.float()
    chain = list(zip(config.modules, modules, strict=True))
    for spec, module in chain:
        if spec.of_tokens:
            hidden = module(hidden.float())
    rows = pool(hidden, layout, config.pooling, None if config.include_prompt else layout.prompt_lengths)
    for spec, module in chain:
        if not spec.of_tokens:
            rows = module(rows)
    if config.truncate_dim is not None:
        rows = rows[:, : config.truncate_dim]
    return F.normalize(rows, dim=-1) if config.normalize else rows
