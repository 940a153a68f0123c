"""Checkpoint folders (`config.json` + safetensors) -> encoder, and back.

Weights are read from safetensors only: a pickle can run code when it is opened, so `.bin` files are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nopad.model.attention import AttentionFactory
from nopad.model.config import EncoderConfig, Pooling, Task, read_config
from nopad.model.encoder import PackedEncoder, build_encoder
from nopad.model.errors import CheckpointError

_BASE_PREFIX = {"modernbert": "model.", "bert": "bert."}
# transformers' first BERT checkpoints, and buffers that are not weights.
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))
_NOT_WEIGHTS = (".position_ids", "rotary_emb.inv_freq")
# The class of a plain tokenizer.json: transformers 5 writes the new name and reads both, transformers 4 knows the old.
_NEW_CLASS, _OLD_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "1_Pooling/*"]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory."""

    path: Path
    raw_config: dict[str, Any]  # config.json as it was read
    encoder: PackedEncoder
    missing: tuple[str, ...]  # weights the files did not hold (only with new_head=True)

    @property
    def config(self) -> EncoderConfig:
        """What the encoder was built from."""
        return self.encoder.encoder_config


def resolve_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: a local path as it is, any other name downloaded from the Hugging Face Hub."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the checkpoint's folder (config.json and model.safetensors)")
    if str(name).count("/") > 1 or str(name).startswith((".", "/", "~")):
        raise CheckpointError(f"no checkpoint at {path}: the folder does not exist")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(f"no folder {path}, and the Hub needs: pip install 'nopad[export]'") from None
    try:
        return Path(snapshot_download(str(name), allow_patterns=_HUB_FILES))
    except Exception as error:
        raise CheckpointError(
            f"no folder {path} here, and the Hugging Face Hub did not give {str(name)!r}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        ) from error


def read_raw_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder. Raises `CheckpointError` if it is missing or not JSON."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json: it is not a checkpoint folder") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy the file again") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a JSON {type(raw).__name__}, expected an object")
    return raw


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose top is a `kind`. Raises `CheckpointError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy the file again") from None
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected a {kind.__name__}")
    return value


def load_checkpoint(
    folder: Path,
    *,
    task: Task | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    config_changes: Mapping[str, Any] | None = None,
    new_head: bool = False,
    attention: AttentionFactory | None = None,
) -> Checkpoint:
    """Build the encoder of a checkpoint folder and load its weights (fp32).

    `config_changes` are laid over `config.json`. With `new_head`, weights the files lack (a fresh classifier on a
    pre-trained encoder) are initialised and listed in `Checkpoint.missing`; else they are an error.
    Raises `CheckpointError`.
    """
    raw = read_raw_config(folder) | dict(config_changes or {})
    config = read_config(raw, task=task, pooling=pooling, normalize=normalize)
    if config.task == "embeddings" and (folder / "modules.json").is_file():
        st_pooling, st_normalize = _sentence_transformers(folder)
        config = replace(
            config,
            pooling=pooling or st_pooling or config.pooling,
            normalize=st_normalize if normalize is None else normalize,
        )
    files = weight_files(folder)
    matches = _match(config, files)
    encoder = build_encoder(config, attention)
    if new_head:
        initialize(encoder)
    missing = _load_weights(encoder, files, matches)
    head_only = [name for name in missing if not name.startswith(("model.", "bert.", "embeddings.", "layers."))]
    head_only += [name for name in missing if name.startswith("bert.pooler.")]
    if missing and not (new_head and len(head_only) == len(missing)):
        raise CheckpointError(
            f"{files[0].name} in {folder} lacks {len(missing)} weights that {config.hf_class} needs, "
            f"first {missing[0]!r}: the checkpoint is not fine-tuned for {config.task}, or config.json is another's"
        )
    encoder.eval()
    return Checkpoint(path=folder, raw_config=raw, encoder=encoder, missing=tuple(missing))


def _sentence_transformers(folder: Path) -> tuple[Pooling | None, bool]:
    """Pooling and normalisation as sentence-transformers stores them (`modules.json`, `1_Pooling/config.json`)."""
    modules_file = folder / "modules.json"
    modules = read_json(modules_file, list)
    if not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{modules_file} is no list of objects; copy the file again")
    kinds = [str(module.get("type")).rsplit(".", 1)[-1] for module in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise CheckpointError(
                f"{modules_file}: the module {kind} is not supported; nopad has Transformer, Pooling and Normalize, "
                "and without this one the embeddings would be others"
            )
    pooling: Pooling | None = None
    pooling_file = folder / "1_Pooling" / "config.json"
    if pooling_file.is_file():
        raw = read_json(pooling_file, dict)
        # sentence-transformers 6 has one name or a list of them, older ones a flag for each.
        flags = [key for key, on in raw.items() if key.startswith("pooling_mode_") and on is True]
        stated = raw.get("pooling_mode", flags)
        modes = [str(mode) for mode in stated] if isinstance(stated, list) else [str(stated)]
        known: dict[str, Pooling] = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
        known |= {"cls": "cls", "mean": "mean"}
        if len(modes) != 1 or modes[0] not in known:
            raise CheckpointError(f"{pooling_file}: pooling {modes} is not supported; nopad has cls and mean")
        pooling = known[modes[0]]
    elif "Pooling" in kinds:
        raise CheckpointError(f"{modules_file} names the module Pooling, but {pooling_file} is missing; copy it, too")
    return pooling, "Normalize" in kinds


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


def _match(config: EncoderConfig, files: list[Path]) -> dict[str, str]:
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


def _load_weights(encoder: PackedEncoder, files: list[Path], matches: Mapping[str, str]) -> list[str]:
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


def initialize(encoder: PackedEncoder) -> None:
    """Random weights as transformers initialises them (`_init_weights` of the two upstream files)."""
    config = encoder.encoder_config
    std = config.initializer_range
    out_std = std / math.sqrt(2.0 * config.num_layers)
    embeddings = [module for module in encoder.modules() if isinstance(module, nn.Embedding)]
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            leaf = name.rsplit(".", 1)[-1]
            if config.architecture == "bert":
                nn.init.normal_(module.weight, std=std)
            else:
                scale = config.hidden_size**-0.5 if leaf == "classifier" else std if leaf in ("Wqkv", "Wi") else out_std
                if not any(module.weight is other.weight for other in embeddings):  # not a tied decoder
                    nn.init.trunc_normal_(module.weight, std=scale, a=-2 * scale, b=2 * scale)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            if config.architecture == "bert":
                nn.init.normal_(module.weight, std=std)
            else:
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.padding_idx is not None and config.architecture == "bert":
                with torch.no_grad():
                    module.weight[module.padding_idx].zero_()


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder for transformers, whichever version wrote it. Raises `CheckpointError`."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        if _NEW_CLASS in str(error):  # unknown to transformers 4, whose own class reads the same files
            return transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        raise CheckpointError(
            f"transformers {transformers.__version__} cannot open the tokenizer of {folder}: {error}"
        ) from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer of transformers so that transformers 4 and 5 both open it."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    raw = read_json(path, dict)
    if raw.get("tokenizer_class") == _NEW_CLASS:
        path.write_text(json.dumps(raw | {"tokenizer_class": _OLD_CLASS}, indent=2, ensure_ascii=False) + "\n", "utf-8")


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
    if config.architecture == "modernbert":
        if config.task in ("text-classification", "rerank"):
            out["classifier_pooling"] = config.pooling
        out["layer_types"] = ["sliding_attention" if local else "full_attention" for local in config.local_layers]
        out["global_rope_theta"] = config.global_rope_theta
        out["local_rope_theta"] = config.local_rope_theta
        out["rope_parameters"] = {
            "full_attention": {"rope_type": "default", "rope_theta": config.global_rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
        }
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
