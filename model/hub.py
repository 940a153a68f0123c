"""The name of a checkpoint -> its folder, downloaded where it is a name of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from nopad.model.errors import CheckpointError
from nopad.model.folder_kind import name_file

_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "1_Pooling/*"]


def resolve_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: a local path as it is, any other name downloaded from the Hugging Face Hub."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(name_file(path))
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
