"""What the files of a sentence-transformers folder say of the model."""

from __future__ import annotations

from pathlib import Path

from nopad.model.config import Pooling
from nopad.model.errors import CheckpointError
from nopad.model.json_files import read_json


def read_modules(folder: Path) -> tuple[Pooling | None, bool]:
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
