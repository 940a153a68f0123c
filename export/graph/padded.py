"""Padded graphs of any encoder that transformers opens and torch exports, for architectures without a packed encoder.

The graph is transformers' own model, with the task's head, over a matrix of texts filled up to the longest. The same
runtime serves it and the same gate judges it; it only lacks the advantages of packing.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from nopad.export.graph.onnx import Graph, trace, write
from nopad.export.reference.plain import plain_folder
from nopad.export.reference.transformers import open_model, own_config
from nopad.model.attention import PackedLayout
from nopad.model.checkpoint.load import Checkpoint, read_blueprint
from nopad.model.checkpoint.read_config import read_other
from nopad.model.checkpoint.sentence_transformers import transformer_folder
from nopad.model.checkpoint.source import Source
from nopad.model.checkpoint.tokenizer import open_tokenizer
from nopad.model.config import EncoderConfig, Pooling
from nopad.model.embedding import build_modules, embed
from nopad.model.encoder import PackedEncoder
from nopad.model.head import BARE, PER_TOKEN, Task

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_NO_TABLE = 512  # positions of a model that states no number


class PaddedEncoder(PackedEncoder):
    """A model of transformers. Its inputs are the matrices [B, S] named in `inputs`; the output is a packed encoder's,
    but [B, S, ...] for tasks per token.
    """

    def __init__(self, config: EncoderConfig, model: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__(config)
        self.model = model
        self.inputs = tuple(inputs)
        self.chain = build_modules(config)
        self.embeds = config.task in BARE or bool(config.modules)  # the last may be a SetFit classifier

    def forward(self, *matrices: Tensor) -> Tensor:  # type: ignore[override]
        """Logits, fp32; of embeddings the vectors."""
        inputs = dict(zip(self.inputs, matrices, strict=True))
        prompt_lengths = inputs.pop("prompt_lengths", None)
        out: Any = self.model(**inputs)
        if not self.embeds:
            logits: Tensor = out.logits
            return logits.float()
        hidden: Tensor = out.last_hidden_state
        if self.encoder_config.task == "token-embeddings":
            return hidden.float()
        layout = _layout(inputs["attention_mask"], prompt_lengths)
        return embed(hidden.flatten(0, 1), layout, self.encoder_config, self.chain)


def _layout(mask: Tensor, prompt_lengths: Tensor | None) -> PackedLayout:
    """The layout of a padded batch as a stream: its rows, one after the other."""
    batch, longest = mask.shape
    rows, places = torch.arange(batch).unsqueeze(1), torch.arange(longest).unsqueeze(0)
    return PackedLayout(
        position_ids=places.expand(batch, -1).flatten(),
        sequence_ids=rows.expand(-1, longest).flatten(),
        pad_index=torch.where(mask > 0, rows * longest + places, -1),
        half_window=-1,
        block=1,
        prompt_lengths=prompt_lengths,
    )


def load_padded(
    source: Source,
    *,
    task: Task | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Open a checkpoint of any architecture with transformers, as `load_checkpoint` opens those that nopad packs.

    Raises `CheckpointError`, and `ExportError` for what transformers cannot open.
    """
    raw = dict(source.raw_config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blueprint = read_blueprint(
            source,
            task=task,
            pooling=pooling,
            normalize=normalize,
            allow_pickle=allow_pickle,
            read=functools.partial(read_other, sizes=_sizes(own_config(raw))),
        )
        with plain_folder(source, blueprint.encoder_task) as (plain, _):
            theirs, model = open_model(transformer_folder(plain), blueprint.encoder_task, raw)
        inputs = _inputs(theirs, model, open_tokenizer(source.tokenizer).model_input_names)
    config = dataclasses.replace(blueprint.config, max_position_embeddings=_positions(theirs, model))
    inputs += [] if config.include_prompt else ["prompt_lengths"]
    return blueprint.checkpoint(PaddedEncoder(config, model.float(), inputs))


def _sizes(theirs: Any) -> dict[str, int]:
    """The sizes that `EncoderConfig` needs of every encoder, by names that transformers uses for all architectures."""
    names = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
    fields = ("hidden_size", "vocab_size", "intermediate_size", "num_layers", "num_heads")
    sizes = {name: getattr(theirs, names.get(name, name), None) or 1 for name in fields}
    # RoBERTa and its like count positions from config.json's padding id, or their class's, whatever the tokenizer's.
    pad = theirs.pad_token_id
    valid = isinstance(pad, int) and 0 <= pad < sizes["vocab_size"]
    heads = sizes["num_heads"] if sizes["hidden_size"] % sizes["num_heads"] == 0 else 1
    return {**sizes, "num_heads": heads, "pad_token_id": pad if valid else 0, "max_position_embeddings": _NO_TABLE}


def _inputs(theirs: Any, model: nn.Module, tokenized: Sequence[str]) -> list[str]:
    """The inputs that matter: token types only where there are several, and where the tokenizer makes them."""
    parameters = inspect.signature(model.forward).parameters
    types = "token_type_ids" in tokenized and (getattr(theirs, "type_vocab_size", None) or 0) > 1
    return [name for name in _INPUTS if name in parameters and (types or name != "token_type_ids")]


def _positions(theirs: Any, model: nn.Module) -> int:
    """Tokens of the longest text. RoBERTa and its like count from behind the padding id: 514 rows are 512 positions."""
    tables = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings"
    ]
    declared = getattr(theirs, "max_position_embeddings", None)
    if not tables and isinstance(declared, int) and declared > 0:
        return declared
    return min(tables, default=_NO_TABLE)


def export_padded(encoder: PaddedEncoder, path: Path) -> Graph:
    """Write `encoder` to `path`, with batch and length free, and check the file.

    Inputs, int64 [batch, sequence]: `input_ids`, `attention_mask`, `token_type_ids` where they matter; [batch]:
    `prompt_lengths` where prompts are not pooled. Output: fp32 `logits`. Raises `ExportError`.
    """
    config = encoder.encoder_config
    filler = config.pad_token_id or 0
    ids = torch.full((2, 7), (filler + 1) % config.vocab_size)
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = filler, 0
    example = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "prompt_lengths": torch.tensor([1, 0]),
    }
    arguments = [example[name] for name in encoder.inputs]
    dynamic = tuple(dict.fromkeys(range(argument.ndim), torch.export.Dim.DYNAMIC) for argument in arguments)
    program = trace(encoder, arguments, [dynamic], encoder.inputs)
    names = ("batch", "sequence")
    for value in program.model.graph.inputs:
        value.shape = ir.Shape(names[: len(value.shape)])
    (logits,) = program.model.graph.outputs
    per_token = config.task in PER_TOKEN
    logits.shape = ir.Shape((*names[: 1 + per_token], logits.shape[-1]))
    return write(program, path)
