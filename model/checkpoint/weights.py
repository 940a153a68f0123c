"""Weight files of a checkpoint folder -> the encoder's parameters.

safetensors only: a pickle can run code when it is opened, so `.bin` files are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from nopad.model.checkpoint.folder_kind import no_weights
from nopad.model.checkpoint.json_files import read_json
from nopad.model.config import EncoderConfig
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.errors import CheckpointError

ADAPTER_FILE = "adapter_model.safetensors"
_BASE_PREFIX = {"modernbert": "model.", "bert": "bert.", "eurobert": "model.", "ultrabert": "model."}
# Names in transformers' first BERT checkpoints.
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))
# UltraBERT's files have names of their own (transformers' conversion_mapping.py).
_OTHER_PREFIX = {"ultrabert": (("ultrabert.", "model."), ("cls.", "head.decoder."))}
# Buffers.
_NOT_WEIGHTS = (".position_ids", "rotary_emb.inv_freq")
_FLOATS = ("F64", "F32", "F16", "BF16")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
# How PEFT names its matrices beside a module's weight: saved alone, or with the adapter's name in a whole state dict.
_LORA_PART = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(weight|bias))?$"
)
_SAVED_MODULE = re.compile(r"\.modules_to_save\.(?:(?!weight$|bias$)[^.]+\.)?")
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """A tensor in a safetensors file, as the file's header describes it."""

    shape: tuple[int, ...]
    dtype: str  # safetensors' name: F32, BF16, I8, ...


@dataclass(frozen=True, kw_only=True)
class Match:
    """The weight of the encoder that a stored tensor is, or is a part of."""

    target: str
    part: str = ""  # of an adapter: lora_A, lora_B, ...; "" is the weight itself


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, one or several shards. Raises `CheckpointError`.

    `model.safetensors`, else the shards that an index names, else the only safetensors file of the folder (or the only
    complete set of shards) whatever its name.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    indices = sorted(folder.glob("*.safetensors.index.json"))
    usual = folder / "model.safetensors.index.json"
    if usual in indices or len(indices) == 1:
        return _indexed(usual if usual in indices else indices[0])
    others = [path for path in sorted(folder.glob("*.safetensors")) if path.name != ADAPTER_FILE]
    if len(others) == 1 and not _SHARD.fullmatch(others[0].name):
        return others
    sets = {(m[1], int(m[3])) for path in others if (m := _SHARD.fullmatch(path.name))}
    if len(sets) == 1:
        stem, count = next(iter(sets))
        shards = [folder / f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        for shard in shards:
            if not shard.is_file():
                raise CheckpointError(f"{folder} lacks the shard {shard.name}; copy it, too")
        if len(others) == count:
            return shards
    if others:
        names = ", ".join(path.name for path in others[:4]) + (", ..." if len(others) > 4 else "")
        raise CheckpointError(
            f"{folder} has no model.safetensors, but several other files of weights ({names}); rename the right "
            "one to model.safetensors"
        )
    raise CheckpointError(no_weights(folder))


def _indexed(index: Path) -> list[Path]:
    weight_map = read_json(index, dict).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; copy the file again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names the shard {name!r}, which is not in {index.parent}")
    return [index.parent / name for name in names]


def read_tensors(files: Iterable[Path], read: Callable[[Any, str], _T]) -> Iterator[tuple[str, _T]]:
    """Name and `read(opened file, name)` of every tensor in the files. Raises `CheckpointError` for a damaged file."""
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    yield name, read(opened, name)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or cut short ({error}); copy or save it again") from None


def stored_weights(files: Iterable[Path]) -> dict[str, StoredWeight]:
    """Shape and dtype of each tensor in the files, from their headers; no tensor is read."""

    def describe(opened: Any, name: str) -> StoredWeight:
        view = opened.get_slice(name)
        return StoredWeight(shape=tuple(view.get_shape()), dtype=view.get_dtype())

    return dict(read_tensors(files, describe))


def plain_name(name: str) -> tuple[str, str]:
    """Name of the weight that PEFT stores under `name`, and which part of it that is ("" for the weight itself).

    Any other name is returned as it is. The weight that an adapter's copy replaces (`original_module`) has no name: "".
    """
    if ".original_module." in name:
        return "", ""
    name = _SAVED_MODULE.sub(".", name).replace(".base_layer.", ".")
    match = _LORA_PART.search(name)
    if match is None:
        return name, ""
    return name[: match.start()] + ".weight", match[1] + (".bias" if match[2] == "bias" else "")


def common_prefixes(names: Iterable[str]) -> list[str]:
    """Every run of leading components that all names share, the empty one too: `module.`, `module._orig_mod.`, ..."""
    parts = os.path.commonprefix([name.split(".")[:-1] for name in names])
    return ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts) + 1)]


def strip_prefix(names: Collection[str], fill: Callable[[str], str | None]) -> str:
    """The common prefix without which most names are the encoder's (`fill`); of equal prefixes, the shortest."""
    fits = {p: sum(bool(fill(name.removeprefix(p))) for name in names) for p in common_prefixes(names)}
    return max(fits, key=lambda prefix: (fits[prefix], -len(prefix)))


def _filler(config: EncoderConfig, target: Collection[str]) -> Callable[[str], str | None]:
    """Name of a stored tensor -> name of the weight it fills, as transformers would find it."""
    base = _BASE_PREFIX[config.architecture]
    bare = not any(name.startswith(base) for name in target)

    def fill(name: str) -> str | None:
        if name.endswith(_NOT_WEIGHTS):
            return None
        for old, new in _OLD_NAMES:
            name = name.removesuffix(old) + new if name.endswith(old) else name
        for old, new in _OTHER_PREFIX.get(config.architecture, ()):
            name = new + name.removeprefix(old) if name.startswith(old) else name
        return next((n for n in (name, name.removeprefix(base) if bare else base + name) if n in target), None)

    return fill


def match_weights(
    config: EncoderConfig, files: Sequence[Path], *, other_head: bool = False, replaced: Collection[str] = ()
) -> dict[str, Match]:
    """Name of a stored tensor -> the weight it fills.

    Compares the shapes in the files' headers before the encoder takes memory: config.json may ask for any size.
    With `other_head`, a classifier of another size is left out instead of an error; `replaced` are weights that
    another file fills. Raises `CheckpointError`.
    """
    with torch.device("meta"):
        target = build_encoder(config).state_dict()
    fill = _filler(config, target)
    stored = stored_weights(files)
    plain = {name: plain_name(name) for name in stored}
    prefix = strip_prefix([name for name, _ in plain.values() if name], fill) if plain else ""
    matches: dict[str, Match] = {}
    for source, (name, part) in plain.items():
        weight = fill(name.removeprefix(prefix))
        if not weight or (weight in replaced and not part):
            continue
        tensor, expected = stored[source], tuple(target[weight].shape)
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(
                f"weight {source!r} is stored as {tensor.dtype}: the checkpoint is quantized, and nopad reads fp32, "
                "fp16, bf16 and fp64 weights; give the checkpoint it was made from"
            )
        if not part and tensor.shape != expected:
            if weight.startswith("classifier") and config.num_labels:
                if other_head:
                    continue
                raise CheckpointError(_other_head(source, tensor.shape, expected, config))
            raise CheckpointError(f"weight {source!r} has shape {tensor.shape}, config.json asks for {expected}")
        matches[source] = Match(target=weight, part=part)
    return matches


def _other_head(name: str, shape: tuple[int, ...], expected: tuple[int, ...], config: EncoderConfig) -> str:
    if len(shape) != len(expected) or shape[1:] != expected[1:]:
        return f"weight {name!r} has shape {shape}, config.json asks for {expected}"
    labels = ", ".join(config.labels[:5]) + (", ..." if config.num_labels > 5 else "")
    return (
        f"the classifier of the file has {shape[0]} outputs ({name!r} has shape {shape}), but config.json names "
        f"{config.num_labels} labels ({labels}): give it the id2label that the model was trained with (without "
        "id2label, transformers takes 2 labels), or copy the config.json that belongs to the weights"
    )


def load_weights(encoder: PackedEncoder, files: Iterable[Path], matches: Mapping[str, Match]) -> list[str]:
    """Copy the files' tensors into the encoder, in fp32; returns the names that no tensor filled."""
    target = encoder.state_dict()
    filled: dict[int, str] = {}  # by storage, which tied weights share: one of the names is enough
    for source_name, tensor in read_tensors(files, lambda opened, name: opened.get_tensor(name)):
        if source_name not in matches or matches[source_name].part:
            continue
        weight = target[matches[source_name].target]
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


def lacking(config: EncoderConfig, files: Sequence[Path], missing: Sequence[str], task_head: Sequence[str]) -> str:
    """Why the weights `missing` are not in the files, and what to do; `task_head` are those of the head.

    Where the names would fit behind a prefix that some of them have and others lack, that is the reason.
    """
    names = [name for name in (plain_name(stored)[0] for stored in stored_weights(files)) if name]
    where = files[0].name if len(files) == 1 else f"the {len(files)} files"
    count = f"{where} in {files[0].parent} lacks {len(missing)} weights that {config.hf_class} needs"
    with torch.device("meta"):
        fill = _filler(config, build_encoder(config).state_dict())
    fits = sum(bool(fill(name)) for name in names)
    for prefix in sorted({p for name in names for p in common_prefixes([name])[1:4]}):
        behind = [name for name in names if name.startswith(prefix)]
        others = [name for name in names if not name.startswith(prefix)]
        if others and sum(bool(fill(name.removeprefix(prefix))) for name in behind) > max(fits, len(names) // 4):
            return (
                f"{count}: {len(behind)} of the {len(names)} names in it begin with {prefix!r}, which is not part of "
                f"transformers' names, and others do not ({', '.join(others[:3])}), so it is not removed; save the "
                "transformers model alone (model.save_pretrained(DIR)), or rename the weights"
            )
    if len(task_head) == len(missing):
        return (
            f"{count}, all of them of its head ({', '.join(missing[:4])}): the checkpoint is not fine-tuned for "
            f"{config.task}. transformers would make up a new head with random weights; fine-tune it first "
            "(nopad train --model DIR), or export what it has: --task embeddings or --task fill-mask"
        )
    why = f"the checkpoint is not fine-tuned for {config.task}, or config.json belongs to another"
    return f"{count}, first {missing[0]!r}: {why}"
