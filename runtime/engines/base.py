"""The contract between the predictor and whatever computes logits. Imports nothing heavy."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nopad.model.packing import PackedBatch
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What an engine is opened with."""

    threads: int | None = None  # None: the engine library's own choice
    pad_token_id: int = 0
    allow_host_code: bool = False  # run the native code that a version-compatible TensorRT engine carries


class Engine(Protocol):
    """One opened engine file. `run` may be called from several threads at once."""

    name: str
    profiles: tuple[ShapeProfile, ...]  # the shapes it takes; () for any
    token_budget: int  # tokens of a micro-batch that suit it, where the caller does not say

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits, float32: [B, ...] per sequence, or [T, ...] per token of the stream (filler included).

        Raises `EngineError`; `ShapeError`, its kind, for a batch that fits none of `profiles`.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds; a second call does nothing."""
        ...


class EngineFactory(Protocol):
    """Opens an engine; a class whose constructor has this signature is one."""

    def __call__(self, path: Path, artifact: Artifact, options: EngineOptions) -> Engine:
        """Open `path`. Raises `EnvironmentProblem` or `BundleError`: why this machine cannot run it."""
        ...


# name -> "module:factory", imported when chosen; `TARGETS` says which artifacts it opens.
ENGINES = {
    "tensorrt": "nopad.runtime.engines.tensorrt:TensorRTEngine",
    "tensorrt-rtx": "nopad.runtime.engines.tensorrt:TensorRTRTXEngine",
    "onnx-tensorrt": "nopad.runtime.engines.onnx_gpu:OnnxTensorRTEngine",
    "onnx-cuda": "nopad.runtime.engines.onnx_gpu:OnnxCudaEngine",
    "torch": "nopad.runtime.engines.torch:TorchEngine",
    "onnx-cpu": "nopad.runtime.engines.onnx_cpu:OnnxCpuEngine",
}
TARGETS: dict[str, tuple[str, ...]] = {  # the one that suits it best first
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
    "onnx-tensorrt": ("onnx",),
    "onnx-cuda": ("onnx",),
    "torch": ("torch",),
    "onnx-cpu": ("cpu", "onnx"),
}


def engine_factory(name: str) -> EngineFactory:
    """The factory of a registered engine. Raises `UsageError` for an unknown name."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}; this nopad has: auto, {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    factory: EngineFactory = getattr(importlib.import_module(module), attribute)
    return factory
