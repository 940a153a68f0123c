"""Messages for folders and files that are not checkpoints nopad reads: what they are, and the next step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nopad.model.config import ARCHITECTURES

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Pickles that Trainer and others write beside the weights: not weights, and never opened.
_NO_WEIGHTS = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state.*|model_head|openvino\w*)\.\w+")
_OTHER_FORMATS = (
    ("*.gguf", "GGUF weights (llama.cpp)"),
    ("*.onnx", "an ONNX graph"),
    ("onnx/*.onnx", "an ONNX graph"),
    ("openvino_model.xml", "an OpenVINO model"),
    ("openvino/*.xml", "an OpenVINO model"),
    ("tf_model.h5", "TensorFlow weights"),
    ("*.ckpt.index", "TensorFlow weights"),
    ("saved_model.pb", "a TensorFlow SavedModel"),
    ("flax_model.msgpack", "Flax weights"),
    ("rust_model.ot", "rust-bert's weights"),
    ("model.mlmodel", "a Core ML model"),
    ("*.mlpackage", "a Core ML model"),
)
_DATA = ("*.arrow", "*.parquet", "*.jsonl", "*.csv", "*.tsv", "data/*.parquet", "data/*.jsonl", "data/*.csv")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".mar")


def name_file(path: Path) -> str:
    """What a file is that was named instead of a checkpoint's folder."""
    if path.suffix.lower() in _ARCHIVES:
        return f"{path} is an archive; unpack it, and give the checkpoint's folder (config.json and model.safetensors)"
    if path.suffix == ".safetensors":
        return f"{path} is a file of weights; give its folder ({path.parent}), which must have config.json, too"
    return f"{path} is a file; give the checkpoint's folder (config.json and model.safetensors)"


def no_config(folder: Path) -> str:
    """What a folder without config.json is."""
    return (
        _bundle(folder)
        or _trainer_output(folder)
        or _parts(folder)
        or _data_set(folder)
        or f"{folder} has no config.json: it is not a checkpoint folder"
    )


def no_weights(folder: Path) -> str:
    """Why a folder with config.json has no weights that can be read."""
    pickles = sorted(
        path.name for pattern in _PICKLES for path in folder.glob(pattern) if not _NO_WEIGHTS.fullmatch(path.name)
    )
    if pickles:
        return (
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when opened; nopad reads "
            "safetensors only. Convert it once, where you trust the file: "
            "AutoModel...from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)"
        )
    for pattern, kind in _OTHER_FORMATS:
        path = next(iter(sorted(folder.glob(pattern))), None)
        if path is not None:
            return (
                f"{folder} has no model.safetensors, only {kind} ({path.relative_to(folder)}); nopad exports from the "
                "PyTorch checkpoint (safetensors) that it was made from"
            )
    return f"{folder} has no model.safetensors" + (f"; {_trainer_output(folder)}" if _trainer_output(folder) else "")


def _bundle(folder: Path) -> str | None:
    try:
        raw = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(raw, dict) or "format_version" not in raw:
        return None
    return (
        f"{folder} is a nopad bundle, the result of an export: use it with nopad predict --model {folder}, or "
        "export the checkpoint again with other options"
    )


def _trainer_output(folder: Path) -> str | None:
    checkpoints = (path for path in folder.glob("checkpoint-*") if (path / "config.json").is_file())
    steps = sorted(checkpoints, key=lambda path: (len(path.name), path.name))
    if not steps:
        return None
    names = ", ".join(path.name for path in steps[:5]) + (", ..." if len(steps) > 5 else "")
    best = next((name for step in reversed(steps) if (name := _best(step))), None)
    which = f"; the best, by trainer_state.json, is {best}" if best else ""
    if folder.name.endswith(".training"):
        return (
            f"{folder} holds the epochs of an unfinished nopad train ({names}): continue it with nopad train "
            f"--resume, or give one of them, such as {steps[-1]}{which}"
        )
    return f"{folder} is the output folder of a Trainer; its checkpoints are {names}: give one of them{which}"


def _best(checkpoint: Path) -> str | None:
    try:
        best = json.loads((checkpoint / "trainer_state.json").read_bytes()).get("best_model_checkpoint")
    except (OSError, ValueError, AttributeError):
        return None
    name = Path(best).name if isinstance(best, str) else ""
    return name if name and (checkpoint.parent / name).is_dir() else None


def _parts(folder: Path) -> str | None:
    """Folders that hold a part of a model, or a model in another format."""
    for pattern, kind in _OTHER_FORMATS:
        if next(folder.glob(pattern), None) is not None:
            return (
                f"{folder} holds {kind} and no config.json; nopad exports from the PyTorch checkpoint it was made from"
            )
    for pattern in ("*.safetensors", *_PICKLES):
        weights = next((path for path in sorted(folder.glob(pattern)) if not _NO_WEIGHTS.fullmatch(path.name)), None)
        if weights is not None:
            return (
                f"{folder} has weights ({weights.name}) but no config.json, so it is not a checkpoint folder: save it "
                "with model.save_pretrained(DIR), or copy the config.json that belongs to the weights"
            )
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        return (
            f"{folder} holds a tokenizer alone (no config.json, no weights), so it is not a checkpoint folder: save "
            "the model into it, too (model.save_pretrained(DIR))"
        )
    inner = sorted(
        path.parent.name for path in folder.glob("*/config.json") if (path.parent / "model.safetensors").exists()
    )
    if inner:
        return (
            f"{folder} has no config.json: it is not a checkpoint folder, but holds some ({', '.join(inner[:5])}); "
            f"give one of them, such as {folder / inner[0]}"
        )
    return None


def _data_set(folder: Path) -> str | None:
    saved = any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json"))
    table = next((path for pattern in _DATA for path in sorted(folder.glob(pattern))), None)
    if not saved and table is None:
        return None
    what = "a data set" + (f" ({table.relative_to(folder)})" if table is not None else "")
    return f"{folder} holds {what}, not a checkpoint: it has no config.json. Data goes to nopad train --train"


def unfit_architecture(raw: Mapping[str, Any]) -> str | None:
    """Why no exporter of nopad could run the model of a `config.json`; None if one may."""
    quantized = raw.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
        return (
            f"config.json: the weights are quantized (quantization_config: {method or 'of an unknown method'}); nopad "
            "reads fp32, fp16, bf16 and fp64 weights. Give the checkpoint it was made from; nopad export --precision "
            "int8 quantizes itself"
        )
    model_type, names = str(raw.get("model_type")), raw.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else model_type
    if name.endswith(("ForCausalLM", "LMHeadModel")) or raw.get("is_decoder") or raw.get("add_cross_attention"):
        return _decoder(name)
    if raw.get("is_encoder_decoder"):
        return _encoder_decoder(name)
    return None if model_type in ARCHITECTURES else _unfit_type(model_type, name, raw.get("auto_map"))


def _unfit_type(model_type: str, name: str, auto_map: object) -> str | None:
    try:
        from transformers.models.auto import configuration_auto, modeling_auto
    except ImportError:
        return None
    if model_type in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return _encoder_decoder(name)
    speech = model_type in modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES
    masked = model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not speech
    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked:
        return _decoder(name)
    if model_type in configuration_auto.CONFIG_MAPPING_NAMES:
        if masked or model_type in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
            return None
        return f"config.json: {name} (model_type {model_type!r}) does not encode text alone; nopad runs text encoders"
    if isinstance(auto_map, Mapping) and auto_map:
        return (
            f"config.json: model_type {model_type!r} is computed by Python code that comes with the checkpoint "
            f"(auto_map: {next(iter(auto_map.values()))}); nopad does not run remote code, and has no "
            "encoder for it"
        )
    return None


def _decoder(name: str) -> str:
    return (
        f"config.json: {name} is a decoder: it generates text, and each token sees only the tokens before it (or "
        "is_decoder is true); nopad runs encoders, such as ModernBERT and BERT"
    )


def _encoder_decoder(name: str) -> str:
    return f"config.json: {name} is an encoder-decoder; nopad runs encoders, such as ModernBERT and BERT"
