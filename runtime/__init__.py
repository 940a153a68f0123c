"""Bundle -> predictions. Imports numpy and tokenizers; an engine's library only when that engine is opened.

`load` and `Model` are imported on first access, so that commands which need no model do not import the engines.
"""

import os
from typing import TYPE_CHECKING, Any

from nopad.runtime.types import (
    Attribution,
    Embedding,
    Entity,
    Explanation,
    Failure,
    MaskFill,
    Prediction,
    Ranked,
    Tagging,
    TokenEmbeddings,
)

# ONNX Runtime from 1.31 on writes a device id below the home folder and reports its use, unless it is told not to
# before it is loaded, which may happen in any folder of nopad.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Attribution", "Embedding", "Entity", "Explanation", "Failure", "MaskFill", "Model", "Prediction", "Ranked",
    "Tagging", "TokenEmbeddings", "load",
]  # fmt: skip

if TYPE_CHECKING:
    from nopad.runtime.predictor import Model, load


def __getattr__(name: str) -> Any:
    if name not in ("Model", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nopad.runtime import predictor

    return getattr(predictor, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
