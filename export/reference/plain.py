"""A checkpoint of any form -> a folder that transformers opens, for the parity gate's reference.

The only file of `reference/` that gets an opened `Source`: it makes the folder that the other files read. An adapter is
merged by PEFT itself, so that our own merge (`model/checkpoint/adapter.py`) is judged by an independent merge. The
user's folder is never changed.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from nopad.export.errors import ExportError
from nopad.export.reference.transformers import CLASSES
from nopad.model.checkpoint.load import load_checkpoint
from nopad.model.checkpoint.save import write_checkpoint
from nopad.model.checkpoint.source import Source, open_source
from nopad.model.checkpoint.weights import common_prefixes, read_tensors, strip_prefix
from nopad.model.head import Task

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".h5", ".msgpack")


@contextmanager
def plain_folder(source: Source, task: Task) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of `source` if transformers reads all of it for `task`; else a temporary folder of the same weights.

    Also yields the version of the package that merged an adapter. Raises `CheckpointError`, `ExportError`.
    """
    folder, prefix = source.folder, ""
    if source.adapter is None:
        prefix = _prefix(source, CLASSES[task])
        if not prefix and _has_standard_files(source):
            yield folder, {}
            return
    versions = {}
    with tempfile.TemporaryDirectory(prefix="nopad-") as temporary:
        top = Path(temporary)
        plain = top / source.home.relative_to(folder)
        plain.mkdir(parents=True, exist_ok=True)
        if source.adapter is None:
            tensors = dict(read_tensors(source.weights, lambda opened, name: opened.get_tensor(name)))
            tensors = {name.removeprefix(prefix): tensor.contiguous() for name, tensor in tensors.items()}
            save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
            (plain / "config.json").write_text(json.dumps(source.raw_config), "utf-8")
        else:
            versions = _merge(source, plain, task)
        for origin, copy in ((source.home, plain), (folder, top), (source.tokenizer, plain)):
            for path in origin.iterdir():
                left_out = path.name.endswith(_WEIGHTS) or path.name.startswith(("adapter_", "checkpoint-"))
                if not left_out and not (copy / path.name).exists():
                    (copy / path.name).symlink_to(path.resolve())
        yield top, versions


def _has_standard_files(source: Source) -> bool:
    """Whether the files have the names and the metadata that transformers requires."""
    if source.weights[0].name != "model.safetensors" and not (source.home / "model.safetensors.index.json").is_file():
        return False
    from safetensors import safe_open

    for path in source.weights:
        with safe_open(path, framework="pt") as opened:
            if (opened.metadata() or {}).get("format") != "pt":
                return False
    return True


def _prefix(source: Source, model_class: str) -> str:
    """The prefix to strip from all names, so that they are those of transformers' own model."""
    names = [name for name, _ in read_tensors(source.weights, lambda opened, name: None)]
    if len(common_prefixes(names)) == 1:
        return ""
    try:
        with _quiet(), torch.device("meta"):
            config = transformers.AutoConfig.for_model(**source.raw_config)
            model = getattr(transformers, model_class).from_config(config)
    except Exception:  # of any kind; opening the folder will say what is wrong with it
        return ""
    known = set(model.state_dict())
    base = f"{model.base_model_prefix}."
    bare = not any(name.startswith(base) for name in known)  # transformers adds or strips the base's own prefix
    known |= {base + name if bare else name.removeprefix(base) for name in known}
    return strip_prefix(names, lambda name: name if name in known else None)


def _merge(source: Source, plain: Path, task: Task) -> dict[str, str]:
    """Write the adapter merged into its base: by PEFT; by nopad where PEFT is missing or cannot read such a file."""
    assert source.adapter is not None
    if source.base is None or importlib.util.find_spec("peft") is None:
        checkpoint = load_checkpoint(source, task=task)
        write_checkpoint(checkpoint.encoder, checkpoint.raw_config, plain)
        return {"adapter": "merged by nopad itself"}
    import peft

    raw: dict[str, Any] = dict(source.raw_config)
    with _quiet(), plain_folder(open_source(source.base), task) as (base, _):
        try:
            base_config = transformers.AutoConfig.from_pretrained(base)
            config = transformers.AutoConfig.for_model(**raw)
            vocab_size, config.vocab_size = config.vocab_size, base_config.vocab_size
            model = getattr(transformers, CLASSES[task]).from_pretrained(
                base, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, use_safetensors=True
            )
            if vocab_size != base_config.vocab_size:
                model.resize_token_embeddings(vocab_size, mean_resizing=False)
            merged = peft.PeftModel.from_pretrained(model, source.home).merge_and_unload()
        except Exception as error:  # the two libraries raise errors of any kind for files that they cannot take
            raise ExportError(f"PEFT {peft.__version__} cannot merge {source.folder}: {error}") from error
        merged.save_pretrained(plain)
    (plain / "config.json").write_text(json.dumps(raw | {"vocab_size": vocab_size}), "utf-8")
    return {"peft": peft.__version__}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' reports on the folders that they open."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
