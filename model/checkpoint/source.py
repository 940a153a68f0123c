"""The files that a checkpoint is read from: a folder's own, or those of a LoRA adapter and of its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nopad.model.checkpoint.adapter import SETTINGS_FILE, Adapter, adapted_config, check_parts, find_base, read_adapter
from nopad.model.checkpoint.folder_kind import unfit_architecture
from nopad.model.checkpoint.json_files import read_raw_config
from nopad.model.checkpoint.sentence_transformers import transformer_folder
from nopad.model.checkpoint.tokenizer import VOCABULARIES
from nopad.model.checkpoint.weights import ADAPTER_FILE, Match, match_weights, plain_name, stored_weights, weight_files
from nopad.model.config import EncoderConfig
from nopad.model.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a checkpoint is read from."""

    folder: Path  # as the caller named it
    home: Path  # where its config.json, weights and tokenizer lie: `folder`, or a folder in it
    base: Path | None  # of an adapter: the folder of its base model
    raw_config: Mapping[str, Any]
    weights: tuple[Path, ...]  # of the base, or of `folder` itself
    adapter: Adapter | None
    remarks: tuple[str, ...] = ()  # on what had to be guessed

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of weights."""
        return self.weights if self.base is None or self.adapter is None else (*self.weights, self.adapter.file)

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer: an adapter that was saved without one uses its base's."""
        own = any(True for pattern in VOCABULARIES for _ in self.home.glob(pattern))
        return self.home if own or self.base is None else self.base

    def matches(self, config: EncoderConfig, *, other_head: bool = False) -> dict[str, Match]:
        """Which weight of the encoder each stored tensor is, or is a part of. Raises `CheckpointError`."""
        if self.base is None or self.adapter is None:
            matches = match_weights(config, self.weights, other_head=other_head)
            check_parts(self.adapter, self.folder, matches, self.weights, other_head=other_head)
            return matches
        own = match_weights(config, [self.adapter.file], other_head=other_head)
        check_parts(self.adapter, self.folder, own, [self.adapter.file], other_head=other_head)
        replaced = {match.target for match in own.values() if not match.part}
        return match_weights(config, self.weights, other_head=other_head, replaced=replaced) | own


def open_source(folder: Path, base: str | Path | None = None) -> Source:
    """Find the files of the checkpoint in `folder`; `base` is the folder or Hub name of an adapter's base.

    Raises `CheckpointError`.
    """
    home = transformer_folder(folder)
    adapter = read_adapter(home)
    if adapter is not None and adapter.file.is_file():
        base_folder = transformer_folder(find_base(adapter, base))
        raw, remarks = adapted_config(adapter, _read_config(base_folder))
        return Source(
            folder=folder,
            home=home,
            base=base_folder,
            raw_config=raw,
            weights=tuple(weight_files(base_folder)),
            adapter=adapter,
            remarks=remarks,
        )
    if base is not None:
        raise CheckpointError(f"--base is for LoRA adapters, and {home} has no {ADAPTER_FILE}")
    if adapter is not None and (home / "adapter_model.bin").is_file():
        raise CheckpointError(
            f"{home} holds its adapter as a pickle (adapter_model.bin), which can run code when opened; nopad reads "
            "safetensors only. Save it again, where you trust the file: "
            "AutoPeftModelFor...from_pretrained(DIR).save_pretrained(DIR)"
        )
    if adapter is not None and not (home / "config.json").is_file():
        raise CheckpointError(f"{home} is a LoRA adapter ({SETTINGS_FILE}) without its {ADAPTER_FILE}; copy that, too")
    raw = _read_config(home)
    weights = tuple(weight_files(home))
    merged = not any(plain_name(name)[1] for name in stored_weights(weights))
    return Source(
        folder=folder, home=home, base=None, raw_config=raw, weights=weights, adapter=None if merged else adapter
    )


def _read_config(folder: Path) -> dict[str, Any]:
    raw = read_raw_config(folder)
    if unfit := unfit_architecture(raw):
        raise CheckpointError(unfit)
    return raw
