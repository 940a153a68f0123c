"""Checkpoint folders (`config.json` + safetensors) -> encoder, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from nopad.model.attention import AttentionFactory
from nopad.model.checkpoint.adapter import merge
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.read_head import detect_task, json_object
from nopad.model.checkpoint.sentence_transformers import (
    Pipeline,
    pipeline_for,
    read_activation,
    transformer_folder,
)
from nopad.model.checkpoint.setfit import classifier_of
from nopad.model.checkpoint.source import Source, open_source
from nopad.model.checkpoint.weights import lacking, load_weights
from nopad.model.config import EmbeddingModule, EncoderConfig, Pooling
from nopad.model.embedding import check_modules, load_modules
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.errors import CheckpointError
from nopad.model.head import Head, Task

_EMBEDDING_FIELDS = ("pooling", "include_prompt", "modules", "truncate_dim", "normalize")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory."""

    path: Path
    raw_config: dict[str, Any]  # config.json as it was read
    encoder: PackedEncoder
    missing: tuple[str, ...]  # weights the files did not hold (only with new_head=True)
    source: Source | None = None  # the files it was read from; None for random weights
    remarks: tuple[str, ...] = ()  # what its user should know of how it was read
    pipeline: Pipeline | None = None  # what the files of sentence-transformers say, where the task asks them
    overrides: Mapping[str, Any] = field(default_factory=dict)  # pooling and normalize of embeddings, as asked for

    @property
    def files(self) -> Path:
        """Where the tokenizer lies: `path`, a folder in it, or an adapter's base."""
        return self.source.tokenizer if self.source else transformer_folder(self.path)

    @property
    def activation(self) -> str | None:
        """What makes a cross-encoder's scores of its logits; None for other models. Raises `CheckpointError`."""
        if self.config.task not in ("rerank", "text-classification"):
            return None
        crosses, named = read_activation(self.raw_config, self.files / "config.json")
        if self.pipeline is not None and self.pipeline.model_type == "CrossEncoder":
            crosses, named = True, self.pipeline.activation or named
        if not crosses and self.config.task != "rerank":
            return None
        return named or ("Sigmoid" if self.config.num_labels == 1 else "Identity")

    @property
    def head(self) -> Head:
        """What the encoder's logits mean. Raises `CheckpointError`."""
        config = self.config
        return Head(
            task=config.task, labels=config.labels, problem_type=config.problem_type, activation=self.activation
        )

    @property
    def config(self) -> EncoderConfig:
        """What the encoder was built from."""
        return self.encoder.encoder_config


def load_checkpoint(
    folder: Path,
    *,
    task: Task | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    config_changes: Mapping[str, Any] | None = None,
    new_head: bool = False,
    attention: AttentionFactory | None = None,
    base: str | Path | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Build the encoder of a checkpoint folder and load its weights (fp32).

    A LoRA adapter is merged into its base: the one that it names, or `base`. `config_changes` are laid over
    `config.json`. With `new_head`, weights the files lack (a fresh classifier on a pre-trained encoder) are initialised
    and listed in `Checkpoint.missing`; else they are an error. With `allow_pickle`, a SetFit model's classifier is
    opened, which can run code.
    Raises `CheckpointError`.
    """
    source = open_source(folder, base)
    raw = {**source.raw_config, **(config_changes or {})}
    classifier, remarks = (None, ()) if new_head else classifier_of(folder, task, allow_pickle)
    wanted = "embeddings" if classifier else task
    config, pipeline = folder_config(raw, pipeline_for(folder, wanted), wanted, pooling, normalize)
    if classifier is not None:
        config = classifier.extend(config, pipeline)
    matches = source.matches(config, other_head=new_head)
    encoder = build_encoder(config, attention)
    if new_head:
        initialize(encoder)
    missing = load_weights(encoder, source.files, matches)
    if pipeline is not None and config.modules:
        load_modules(cast(nn.ModuleList, encoder.chain), folder, pipeline.weights)
        missing = [name for name in missing if not name.startswith("chain.")]
    if classifier is not None:
        classifier.fill(encoder)
    head_only = [name for name in missing if not name.startswith(("model.", "bert.", "embeddings.", "layers."))]
    head_only += [name for name in missing if name.startswith("bert.pooler.")]
    if missing and not (new_head and len(head_only) == len(missing)):
        raise CheckpointError(lacking(config, source.files, missing, head_only))
    if source.adapter is not None:
        merge(encoder, source.adapter, source.files, matches)
    encoder.eval()
    return Checkpoint(
        path=folder,
        raw_config=raw,
        encoder=encoder,
        missing=tuple(missing),
        source=source,
        remarks=(*source.remarks, *remarks),
        pipeline=pipeline,
        overrides=overrides_of(config, pooling, normalize),
    )


def overrides_of(config: EncoderConfig, pooling: Pooling | None, normalize: bool | None) -> dict[str, Any]:
    """What was asked of an embedding model against its folder, as `Checkpoint.overrides` keeps it."""
    asked = {"pooling": pooling, "normalize": normalize} if config.task == "embeddings" else {}
    return {name: value for name, value in asked.items() if value is not None}


def folder_config(
    raw: Mapping[str, Any],
    pipeline: Pipeline | None,
    task: Task | None,
    pooling: Pooling | None,
    normalize: bool | None,
    read: Callable[..., EncoderConfig] = read_config,
) -> tuple[EncoderConfig, Pipeline | None]:
    """The configuration that config.json and the files of sentence-transformers make together.

    `read` reads config.json alone, as `read_config` does.
    """
    told = json_object(raw, "nopad")  # of `write_checkpoint`, which has no other files
    task = task or told.get("task")
    if task is None and pipeline is not None:
        task = (
            "embeddings"
            if pipeline.model_type == "SentenceTransformer"
            else detect_task({**raw, "sentence_transformers": {}})
        )
    classifies = pooling in ("cls", "mean", "pooler", "late")
    config = read(raw, task=task, pooling=pooling if classifies else None, normalize=normalize)
    if config.task != "embeddings":
        if pooling is not None and not classifies:
            raise CheckpointError(f"pooling {pooling!r} is for embeddings; {config.task} has cls and mean")
        ours = pipeline is not None and pipeline.model_type == "CrossEncoder"
        return config, pipeline if ours and config.task != "token-classification" else None
    fields: dict[str, Any] = {}
    if pipeline is not None and pipeline.model_type == "SentenceTransformer":
        fields = {name: getattr(pipeline, name) for name in _EMBEDDING_FIELDS}
        if normalize is False:  # without the modules that normalise at the end
            while fields["modules"] and fields["modules"][-1].kind == "Normalize":
                fields["modules"] = fields["modules"][:-1]
    elif told:
        fields = {name: told[name] for name in _EMBEDDING_FIELDS if name in told}
        fields["modules"] = tuple(EmbeddingModule(**one) for one in told.get("modules") or ())
    else:
        pipeline = None
    fields |= {"pooling": pooling} if pooling is not None else {}
    fields |= {"normalize": normalize} if normalize is not None else {}
    config = replace(config, **fields)
    check_modules(config)
    return config, pipeline


def told_json(config: EncoderConfig) -> dict[str, Any]:
    """The key `nopad` of config.json: what `load_checkpoint` must be told besides transformers' own keys."""
    return {"task": config.task, **{name: getattr(config, name) for name in _EMBEDDING_FIELDS}} | {
        "modules": [asdict(module) for module in config.modules]
    }


def initialize(encoder: PackedEncoder) -> None:
    """Random weights as transformers initialises them (`_init_weights` of the two upstream files)."""
    config = encoder.encoder_config
    std = config.initializer_range
    out_std = std / math.sqrt(2.0 * config.num_layers)
    embeddings = [module for module in encoder.modules() if isinstance(module, nn.Embedding)]
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            leaf = name.rsplit(".", 1)[-1]
            if config.architecture != "modernbert":
                nn.init.normal_(module.weight, std=std)
            else:
                scale = config.hidden_size**-0.5 if leaf == "classifier" else std if leaf in ("Wqkv", "Wi") else out_std
                if not any(module.weight is other.weight for other in embeddings):  # not a tied decoder
                    nn.init.trunc_normal_(module.weight, std=scale, a=-2 * scale, b=2 * scale)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            if config.architecture != "modernbert":
                nn.init.normal_(module.weight, std=std)
            else:
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.padding_idx is not None and config.architecture != "modernbert":
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()


def config_json(raw: Mapping[str, Any], config: EncoderConfig) -> dict[str, Any]:
    """`config.json` for `config`, keeping what `raw` said besides; readable by transformers 4 and 5."""
    out = dict(raw)
    out["architectures"] = [config.hf_class]
    out["model_type"] = config.architecture
    if config.labels:
        out["id2label"] = {str(i): label for i, label in enumerate(config.labels)}
        out["label2id"] = {label: i for i, label in enumerate(config.labels)}
    if config.problem_type:
        out["problem_type"] = config.problem_type
    if config.architecture != "bert" and config.task in ("text-classification", "rerank"):
        bos = config.architecture == "eurobert" and config.pooling == "cls"
        out["classifier_pooling"] = "bos" if bos else config.pooling
    if config.architecture == "modernbert":
        out["layer_types"] = ["sliding_attention" if local else "full_attention" for local in config.local_layers]
        out["global_rope_theta"] = config.global_rope.rope_theta
        out["local_rope_theta"] = config.local_rope.rope_theta
        ropes = {"full_attention": config.global_rope, "sliding_attention": config.local_rope}
        out["rope_parameters"] = {kind: rope.to_json() for kind, rope in ropes.items()}
        if config.global_rope.truncate is not None:  # which transformers reads beside them
            out["rope_parameters"]["truncate"] = config.global_rope.truncate
        out.pop("rope_scaling", None)  # it has gone into both
        for every in range(1, config.num_layers + 1):
            if tuple(bool(i % every) for i in range(config.num_layers)) == config.local_layers:
                out["global_attn_every_n_layers"] = every
                break
    return out


def write_checkpoint(encoder: PackedEncoder, raw_config: Mapping[str, Any], folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into an existing folder (made by `replace_folder`)."""
    seen: set[int] = set()
    weights = {}
    for name, tensor in encoder.state_dict().items():
        shared = tensor.data_ptr() in seen
        # Tied weights are stored once; untied, transformers 5 wants BERT's decoder bias under both of its names.
        if not shared or not encoder.encoder_config.tie_word_embeddings:
            seen.add(tensor.data_ptr())
            copy = tensor.detach().cpu().contiguous()
            weights[name] = copy.clone() if shared else copy
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes 0600
    text = json.dumps(config_json(raw_config, encoder.encoder_config), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
