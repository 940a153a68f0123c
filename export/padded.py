"""Padded bundles: any encoder that transformers opens and torch exports, for architectures without a packed encoder.

The graph is transformers' own model, with the task's head, over a matrix of texts filled up to the longest. The same
runtime serves it and the same gate judges it; what it lacks is everything that follows from packing.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from nopad.export.onnx import trace, write
from nopad.export.provenance import created, source_of
from nopad.export.reference import open_model
from nopad.export.tokenizer import copy_tokenizer, max_length_of, token_text
from nopad.model.checkpoint import open_tokenizer
from nopad.model.head import Task, detect_task, read_head
from nopad.model.json_files import read_raw_config
from nopad.model.weights import weight_files
from nopad.runtime.bundle import Bundle, record_files, write_manifest
from nopad.runtime.manifest import Artifact, Manifest

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Padded(nn.Module):
    """A model of transformers with one output: logits, fp32."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return out.float()


class _PaddedEmbedder(_Padded):
    """The bare model, pooled to one row a text."""

    def __init__(self, model: nn.Module, names: Sequence[str], pooling: str, normalize: bool) -> None:
        super().__init__(model, names)
        self.pooling = pooling
        self.normalize = normalize

    def forward(self, *inputs: Tensor) -> Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        hidden: Tensor = self.model(**named).last_hidden_state.float()
        mask = named["attention_mask"].unsqueeze(-1).float()
        rows = (hidden * mask).sum(1) / mask.sum(1) if self.pooling == "mean" else hidden[:, 0]
        return nn.functional.normalize(rows, dim=-1) if self.normalize else rows


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A checkpoint as transformers opens it."""

    config: Any
    model: nn.Module
    inputs: tuple[str, ...]
    positions: int  # the longest text, in tokens


def write_padded_bundle(
    checkpoint: Path,
    folder: Path,
    *,
    task: Task | None,
    pooling: str | None,
    normalize: bool | None,
    max_length: int | None,
) -> Bundle:
    """Export `checkpoint` into an existing, empty folder (no parity gate).

    Raises `CheckpointError`, and `ExportError` for what transformers cannot open or torch cannot export.
    """
    raw = read_raw_config(checkpoint)
    weight_files(checkpoint)  # refuses pickles
    head = read_head(raw, task or detect_task(raw))
    opened = _open(checkpoint, head.task, raw)
    tokenizer = copy_tokenizer(checkpoint, folder, int(raw.get("vocab_size", 1 << 31)))
    module = _Padded(opened.model, opened.inputs)
    if head.task == "embeddings":
        pooling = pooling or "mean"
        module = _PaddedEmbedder(opened.model, opened.inputs, pooling, bool(normalize))
    artifact = _write_graph(module, folder / "model.onnx", _padding(opened.config), per_token=head.task in _PER_TOKEN)
    manifest = Manifest(
        task=head.task,
        labels=head.labels,
        problem_type=head.problem_type,
        pooling=pooling if head.task == "embeddings" else None,
        normalize=bool(normalize) and head.task == "embeddings",
        max_length=max_length_of(max_length, tokenizer, opened.positions),
        pad_token_id=_padding(opened.config),
        mask_token=token_text(tokenizer.get("mask_token")),
        architecture={
            "model_type": raw.get("model_type"),
            "hidden_size": getattr(opened.config, "hidden_size", 0),
            "max_position_embeddings": opened.positions,
        },
        source=source_of(checkpoint),
        created=created(),
        artifacts=(artifact,),
        files=record_files(folder),
    )
    return write_manifest(folder, manifest)


_PER_TOKEN = ("token-classification", "fill-mask")


def _open(checkpoint: Path, task: str, raw: dict[str, Any]) -> _Opened:
    config, model = open_model(checkpoint, task, raw)
    takes = inspect.signature(model.forward).parameters
    given = open_tokenizer(checkpoint).model_input_names
    names = [name for name in _INPUTS if name in takes]
    # Token types matter where the model has more than one, and where its tokenizer tells them.
    if "token_type_ids" not in given or (getattr(config, "type_vocab_size", None) or 0) < 2:
        names = [name for name in names if name != "token_type_ids"]
    return _Opened(config=config, model=model.float().eval(), inputs=tuple(names), positions=_positions(config, model))


def _padding(config: Any) -> int:
    """The id that RoBERTa's kind counts positions by: config.json's or the class's default, whatever the tokenizer's."""
    return config.pad_token_id if isinstance(config.pad_token_id, int) and config.pad_token_id >= 0 else 0


def _positions(config: Any, model: nn.Module) -> int:
    """Tokens of the longest text. RoBERTa's kind begins to count behind the padding id: 514 rows are 512 positions."""
    tables = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings"
    ]
    declared = getattr(config, "max_position_embeddings", None)
    stated = [declared] if isinstance(declared, int) and declared > 0 and not tables else []
    return min([*tables, *stated], default=512)


def _write_graph(module: _Padded, path: Path, pad: int, *, per_token: bool) -> Artifact:
    """Texts and their lengths are free; traced on two texts of different lengths."""
    batch, longest = 2, 7
    ids = torch.full((batch, longest), pad + 1)
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = pad, 0
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = trace(module, tuple(example[name] for name in module.names), {name: free for name in module.names})
    names = ("batch", "sequence")
    for value in program.model.graph.inputs:
        value.shape = ir.Shape(names)
    (logits,) = program.model.graph.outputs
    logits.shape = ir.Shape((*names[: 1 + per_token], logits.shape[-1]))
    graph = write(program, module, path)
    return Artifact(
        file=path.name,
        target="onnx",
        precision="fp32",
        layout="padded",
        inputs=graph.inputs,
        outputs=graph.outputs,
        opset=graph.opset,
        exporter="padded",
    )
