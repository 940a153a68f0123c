"""Weight files of a checkpoint folder -> the encoder's parameters.

safetensors only: a pickle can run code when it is opened, so `.bin` files are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from nopad.model.config import EncoderConfig
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.errors import CheckpointError
from nopad.model.json_files import read_json

_BASE_PREFIX = {"modernbert": "model.", "bert": "bert.", "eurobert": "model.", "ultrabert": "model."}
# transformers' first BERT checkpoints, and buffers that are not weights.
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))
# UltraBERT's files have names of their own (transformers' conversion_mapping.py).
_OTHER_PREFIX = {"ultrabert": (("ultrabert.", "model."), ("cls.", "head.decoder."))}
_NOT_WEIGHTS = (".position_ids", "rotary_emb.inv_freq")
_T = TypeVar("_T")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or several shards. Raises `CheckpointError`."""
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index, dict).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map; copy the file again")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise CheckpointError(f"{index} names the shard {name!r}, which is not in {folder}")
        return [folder / name for name in names]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when opened; nopad reads "
            "safetensors only. Convert it once, where you trust the file: "
            "AutoModel...from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)"
        )
    raise CheckpointError(f"{folder} has no model.safetensors")


def _stored(files: list[Path], read: Callable[[Any, str], _T]) -> Iterator[tuple[str, _T]]:
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                    yield name, read(opened, name)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or cut short ({error}); copy or save it again") from None


def match_weights(config: EncoderConfig, files: list[Path]) -> dict[str, str]:
    """Name of a stored tensor -> name of the weight it fills.

    Compares the shapes in the files' headers before the encoder takes memory: config.json may ask for any size.
    """
    with torch.device("meta"):
        target = build_encoder(config).state_dict()
    prefix = _BASE_PREFIX[config.architecture]
    matches: dict[str, str] = {}
    for source_name, shape in _stored(files, lambda opened, name: tuple(opened.get_slice(name).get_shape())):
        name = source_name
        for old, new in _OLD_NAMES:
            name = name.removesuffix(old) + new if name.endswith(old) else name
        for old, new in _OTHER_PREFIX.get(config.architecture, ()):
            name = new + name.removeprefix(old) if name.startswith(old) else name
        name = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in target), "")
        if not name or source_name.endswith(_NOT_WEIGHTS):
            continue
        if shape != tuple(target[name].shape):
            if "classifier" in name and config.num_labels:
                continue  # another task's classifier: left to `missing`
            raise CheckpointError(
                f"weight {source_name!r} has shape {shape}, config.json asks for {tuple(target[name].shape)}"
            )
        matches[source_name] = name
    return matches


def load_weights(encoder: PackedEncoder, files: list[Path], matches: Mapping[str, str]) -> list[str]:
    """Copy the files' tensors into the encoder; returns the names that no tensor filled."""
    target = encoder.state_dict()
    filled: dict[int, str] = {}  # by storage, which tied weights share: one of the names is enough
    for source_name, tensor in _stored(files, lambda opened, name: opened.get_tensor(name)):
        if source_name not in matches:
            continue
        weight = target[matches[source_name]]
        other = filled.setdefault(weight.data_ptr(), source_name)
        # Untied, BERT still shares the decoder's bias; transformers stores two and uses decoder.bias, the later name.
        if encoder.encoder_config.tie_word_embeddings and not (
            other == source_name or torch.equal(weight, tensor.to(weight.dtype))
        ):
            raise CheckpointError(
                f"weights {other!r} and {source_name!r} hold different values, but config.json ties them: set "
                "tie_word_embeddings to false there, or delete the wrong one"
            )
        weight.copy_(tensor)
    return [name for name, tensor in target.items() if tensor.data_ptr() not in filled]
