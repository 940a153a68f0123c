"""A checkpoint's files -> the encoder with its weights, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from nopad.model.attention import AttentionFactory
from nopad.model.checkpoint.adapter import merge
from nopad.model.checkpoint.initialize import initialize
from nopad.model.checkpoint.read_config import read_config
from nopad.model.checkpoint.read_head import detect_task, json_object
from nopad.model.checkpoint.sentence_transformers import Pipeline, pipeline_for, read_activation
from nopad.model.checkpoint.setfit import SetFitHead, classifier_of
from nopad.model.checkpoint.source import Source, open_source
from nopad.model.checkpoint.weights import lacking, load_weights
from nopad.model.config import EmbeddingModule, EncoderConfig, Pooling
from nopad.model.embedding import check_modules, load_modules
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.errors import CheckpointError
from nopad.model.head import Head, Task

# How tokens become an embedding: from sentence-transformers' files, or from the key `nopad` of config.json.
EMBEDDING_FIELDS = ("pooling", "include_prompt", "modules", "truncate_dim", "normalize")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory."""

    raw_config: dict[str, Any]  # config.json as it was read
    encoder: PackedEncoder
    missing: tuple[str, ...] = ()  # weights the files did not hold (only with new_head=True)
    source: Source | None = None  # the files it was read from; None for random weights
    remarks: tuple[str, ...] = ()  # what the user should know about how it was read
    pipeline: Pipeline | None = None  # of sentence-transformers' files, where the task uses them
    overrides: Mapping[str, Any] = field(default_factory=dict)  # pooling and normalize of embeddings, from the caller

    @property
    def activation(self) -> str | None:
        """From a cross-encoder's logits to its scores; None for other models. Raises `CheckpointError`."""
        if self.config.task not in ("rerank", "text-classification"):
            return None
        folder = self.source.tokenizer if self.source else Path()
        is_cross_encoder, name = read_activation(self.raw_config, folder / "config.json")
        if self.pipeline is not None and self.pipeline.model_type == "CrossEncoder":
            is_cross_encoder, name = True, self.pipeline.activation or name
        if not is_cross_encoder and self.config.task != "rerank":
            return None
        return name or ("Sigmoid" if self.config.num_labels == 1 else "Identity")

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


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What a checkpoint's files say about its encoder, before it is built."""

    source: Source
    raw_config: dict[str, Any]
    config: EncoderConfig
    pipeline: Pipeline | None
    classifier: SetFitHead | None
    remarks: tuple[str, ...]
    overrides: Mapping[str, Any]

    @property
    def encoder_task(self) -> Task:
        """The task of the encoder alone: a SetFit model's gives embeddings to its classifier."""
        return "embeddings" if self.classifier is not None else self.config.task

    def checkpoint(self, encoder: PackedEncoder, missing: tuple[str, ...] = ()) -> Checkpoint:
        """The checkpoint of an encoder that has its weights; those of modules and classifier are loaded here."""
        if self.pipeline is not None and self.config.modules:
            load_modules(cast(nn.ModuleList, encoder.chain), self.source.folder, self.pipeline.weights)
        if self.classifier is not None:
            self.classifier.fill(encoder)
        encoder.eval()
        return Checkpoint(
            raw_config=self.raw_config,
            encoder=encoder,
            missing=missing,
            source=self.source,
            remarks=self.remarks,
            pipeline=self.pipeline,
            overrides=self.overrides,
        )


def read_blueprint(
    source: Source,
    *,
    task: Task | None,
    pooling: Pooling | None,
    normalize: bool | None,
    allow_pickle: bool,
    config_changes: Mapping[str, Any] | None = None,
    new_head: bool = False,
    read: Callable[..., EncoderConfig] = read_config,
) -> Blueprint:
    """Read config.json and the files of sentence-transformers and SetFit; the arguments are `load_checkpoint`'s.

    `read` turns config.json alone into a configuration, as `read_config` does. Raises `CheckpointError`.
    """
    raw = {**source.raw_config, **(config_changes or {})}
    classifier, remarks = (None, ()) if new_head else classifier_of(source.folder, task, allow_pickle)
    if classifier is not None:
        task = "embeddings"
    config, pipeline = _folder_config(raw, pipeline_for(source.folder, task), task, pooling, normalize, read)
    if classifier is not None:
        config = classifier.extend(config, pipeline)
    requested = {"pooling": pooling, "normalize": normalize} if config.task == "embeddings" else {}
    return Blueprint(
        source=source,
        raw_config=raw,
        config=config,
        pipeline=pipeline,
        classifier=classifier,
        remarks=(*source.remarks, *remarks),
        overrides={name: value for name, value in requested.items() if value is not None},
    )


def load_checkpoint(
    source: Source | Path,
    *,
    task: Task | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    config_changes: Mapping[str, Any] | None = None,
    new_head: bool = False,
    attention: AttentionFactory | None = None,
    allow_pickle: bool = False,
) -> Checkpoint:
    """Build the encoder of a checkpoint and load its weights (fp32).

    `source` are its files, or the folder in which `open_source` finds them; a LoRA adapter is merged into its base.
    `config_changes` replace keys of `config.json`. With `new_head`, weights the files lack (a fresh classifier on a
    pre-trained encoder) are initialised and listed in `Checkpoint.missing`; else they are an error. With
    `allow_pickle`, a SetFit model's classifier is opened, which can run code.
    Raises `CheckpointError`.
    """
    source = source if isinstance(source, Source) else open_source(source)
    blueprint = read_blueprint(
        source,
        task=task,
        pooling=pooling,
        normalize=normalize,
        allow_pickle=allow_pickle,
        config_changes=config_changes,
        new_head=new_head,
    )
    config = blueprint.config
    matches = source.matches(config, other_head=new_head)
    encoder = build_encoder(config, attention)
    if new_head:
        initialize(encoder)
    missing = load_weights(encoder, source.files, matches)
    if blueprint.pipeline is not None:  # modules after the pooling have files of their own
        missing = [name for name in missing if not name.startswith("chain.")]
    head_only = [name for name in missing if not name.startswith(("model.", "bert.", "embeddings.", "layers."))]
    head_only += [name for name in missing if name.startswith("bert.pooler.")]
    if missing and not (new_head and len(head_only) == len(missing)):
        raise CheckpointError(lacking(config, source.files, missing, head_only))
    if source.adapter is not None:
        merge(encoder, source.adapter, source.files, matches)
    return blueprint.checkpoint(encoder, tuple(missing))


def _folder_config(
    raw: Mapping[str, Any],
    pipeline: Pipeline | None,
    task: Task | None,
    pooling: Pooling | None,
    normalize: bool | None,
    read: Callable[..., EncoderConfig],
) -> tuple[EncoderConfig, Pipeline | None]:
    """The configuration in config.json and the files of sentence-transformers, and the pipeline where it is used."""
    own = json_object(raw, "nopad")  # from `own_json`: such a folder has no files of sentence-transformers
    task = task or own.get("task")
    if task is None and pipeline is not None:
        task = (
            "embeddings"
            if pipeline.model_type == "SentenceTransformer"
            else detect_task({**raw, "sentence_transformers": {}})
        )
    if task == "token-embeddings":
        if pooling is not None or normalize is not None:
            raise CheckpointError(f"{task} are not pooled: pooling and normalize are for --task embeddings")
        return read(raw, task=task), _of_tokens(pipeline)
    for_classifiers = pooling in ("cls", "mean", "pooler", "late")
    config = read(raw, task=task, pooling=pooling if for_classifiers else None, normalize=normalize)
    if config.task != "embeddings":
        if pooling is not None and not for_classifiers:
            raise CheckpointError(f"pooling {pooling!r} is for embeddings; {config.task} has cls and mean")
        is_cross_encoder = pipeline is not None and pipeline.model_type == "CrossEncoder"
        return config, pipeline if is_cross_encoder and config.task != "token-classification" else None
    fields: dict[str, Any] = {}
    if pipeline is not None and pipeline.model_type == "SentenceTransformer":
        fields = {name: getattr(pipeline, name) for name in EMBEDDING_FIELDS}
        if normalize is False:  # without the modules that normalise at the end
            while fields["modules"] and fields["modules"][-1].kind == "Normalize":
                fields["modules"] = fields["modules"][:-1]
    elif own:
        fields = {name: own[name] for name in EMBEDDING_FIELDS if name in own}
        fields["modules"] = tuple(EmbeddingModule(**module) for module in own.get("modules") or ())
    else:
        pipeline = None
    fields |= {"pooling": pooling} if pooling is not None else {}
    fields |= {"normalize": normalize} if normalize is not None else {}
    config = replace(config, **fields)
    check_modules(config)
    return config, pipeline


def _of_tokens(pipeline: Pipeline | None) -> Pipeline | None:
    """The pipeline whose prompts and limits token-embeddings keep, of which the transformer alone makes the vectors."""
    if pipeline is None or pipeline.model_type != "SentenceTransformer":
        return None
    changing = [module.kind for module in pipeline.modules if module.of_tokens]
    if changing:
        raise CheckpointError(
            f"modules.json: {changing[0]} changes each token's vector before the pooling, and token-embeddings are "
            "those of the transformer; export the transformer's own folder, if these are meant"
        )
    return pipeline
