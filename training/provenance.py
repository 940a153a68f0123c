"""What a run depended on: versions, machine, and a digest of its data. Goes into the checkpoint's record."""

from __future__ import annotations

import hashlib
import json
import platform
from typing import Any

import torch

from nopad.model.cpus import cpu_at_hand
from nopad.model.packages import version_of
from nopad.training.data import TrainingData

_PACKAGES = ("nopad", "torch", "transformers", "tokenizers", "accelerate", "datasets", "numpy")


def provenance(data: TrainingData) -> dict[str, Any]:
    """`versions` of packages, `machine`, and `data`: rows, and the SHA-256 of their values in order."""
    versions = {"python": platform.python_version(), **{name: version_of(name) for name in _PACKAGES}}
    machine = {"cpu": cpu_at_hand().model, "threads": torch.get_num_threads(), "gpu": None}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    parts = {"train": data.train, "evaluation": data.evaluation}
    digests = {name: {"rows": len(rows), "sha256": _digest(rows)} for name, rows in parts.items()}
    return {"versions": versions, "machine": machine, "data": {**digests, "summary": data.summary}}


def _digest(rows: Any) -> str:
    """Of the columns' values, whatever file they came from."""
    digest = hashlib.sha256()
    columns = sorted(rows.column_names)
    for batch in rows.select_columns(columns).iter(batch_size=100):
        for row in zip(*(batch[name] for name in columns), strict=True):
            digest.update(json.dumps(row, default=str).encode() + b"\n")
    return digest.hexdigest()
