"""SetFit folders: a sentence-transformers encoder, and beside it a classifier in a pickle."""

from __future__ import annotations

from pathlib import Path

from nopad.model.errors import CheckpointError
from nopad.model.head import Task

SETTINGS_FILE, HEAD_FILE = "config_setfit.json", "model_head.pkl"


def encoder_alone(folder: Path, task: Task | None) -> tuple[str, ...]:
    """The remark that the classifier of a SetFit folder is left out; () for any other folder.

    Raises `CheckpointError` unless `task` says that the embeddings alone are wanted.
    """
    if not any((folder / name).is_file() for name in (SETTINGS_FILE, HEAD_FILE)):
        return ()
    if task != "embeddings":
        raise CheckpointError(
            f"{folder} is a SetFit model: its classifier is {HEAD_FILE}, a pickle of scikit-learn, which can run code "
            "when opened, so it is not read. --task embeddings exports the encoder alone, without the classifier"
        )
    return (f"{folder} is a SetFit model: its classifier ({HEAD_FILE}) is left out, the bundle gives embeddings",)
