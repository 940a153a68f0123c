"""An encoder -> the files of a checkpoint folder (`config.json`, `model.safetensors`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from nopad.model.checkpoint.load import EMBEDDING_FIELDS
from nopad.model.config import EncoderConfig
from nopad.model.encoder import PackedEncoder


def own_json(config: EncoderConfig) -> dict[str, Any]:
    """The key `nopad` of config.json: what transformers' own keys cannot say to `load_checkpoint`."""
    fields = {name: getattr(config, name) for name in EMBEDDING_FIELDS}
    return {"task": config.task, **fields, "modules": [asdict(module) for module in config.modules]}


def config_json(raw: Mapping[str, Any], config: EncoderConfig) -> dict[str, Any]:
    """`config.json` for `config`, with the other keys of `raw`; readable by transformers 4 and 5."""
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
        if config.global_rope.truncate is not None:  # transformers reads it beside them
            out["rope_parameters"]["truncate"] = config.global_rope.truncate
        out.pop("rope_scaling", None)  # already merged into both
        for every in range(1, config.num_layers + 1):
            if tuple(bool(i % every) for i in range(config.num_layers)) == config.local_layers:
                out["global_attn_every_n_layers"] = every
                break
    return out


def write_checkpoint(encoder: PackedEncoder, raw_config: Mapping[str, Any], folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into an existing folder."""
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
