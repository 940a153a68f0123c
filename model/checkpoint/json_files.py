"""JSON files of a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nopad.model.checkpoint.folder_kind import no_config
from nopad.model.errors import CheckpointError


def read_raw_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint folder. Raises `CheckpointError` if it is missing or not JSON."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(no_config(folder)) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy the file again") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a JSON {type(raw).__name__}, expected an object")
    return raw


def read_json(path: Path, kind: type) -> Any:
    """A JSON file whose top level is a `kind`. Raises `CheckpointError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); copy the file again") from None
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected a {kind.__name__}")
    return value
