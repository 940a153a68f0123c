"""The protocol of engines, which compute logits, and their registry. Imports nothing heavy.

A new engine is a module beside this one and an entry in `ENGINES`; `fake.py` is the shortest example.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nopad.model.packages import Need
from nopad.model.packing import PackedBatch
from nopad.runtime.errors import UsageError
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options for opening an engine."""

    threads: int | None = None  # None: the engine library's own choice
    pad_token_id: int = 0
    cache_folder: Path | None = None  # where OpenVINO keeps what it compiles; None: it compiles at every load
    allow_host_code: bool = False  # run the native code that a version-compatible TensorRT engine carries


class Engine(Protocol):
    """One opened engine file. `run` may be called from several threads at once."""

    name: str
    profiles: tuple[ShapeProfile, ...]  # the shapes that it accepts; () for any
    token_budget: int  # tokens of a micro-batch, unless the caller says otherwise
    threads: int | None  # CPU threads of its library; None: the library's own choice, or no threads

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits, float32: [sequences, ...], or per token of the stream [tokens, ...], with or without its filler.

        Raises `EngineError`; its subclass `ShapeError` for a batch that fits none of `profiles`.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds; a second call does nothing."""
        ...


@runtime_checkable
class Differentiable(Protocol):
    """An engine whose encoder can be asked for gradients, too."""

    def differentiable(self) -> Any:
        """A `nopad.model.encoder.PackedEncoder` of the caller's own, in fp32: hooks on it touch no answer."""
        ...


class EngineFactory(Protocol):
    """Opens an engine: a function, or a class whose constructor has this signature. In the registry it has a `name`."""

    def __call__(self, path: Path, artifact: Artifact, options: EngineOptions) -> Engine:
        """Open `path`. Raises `EnvironmentProblem` or `BundleError` if this machine cannot run it."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """An engine of the registry."""

    factory: str  # "module:factory", imported when the engine is opened
    targets: tuple[str, ...]  # of the artifacts that it opens, the most suitable first
    need: Need  # packages that it imports
    gpu: bool = True  # whether it computes on a GPU where there is one
    cpu: bool = False  # whether it computes on a CPU where there is no GPU


# Those for GPUs in the order in which `auto` tries them without FlashAttention-2 (`selection.engine_order`).
ENGINES: dict[str, EngineEntry] = {
    "tensorrt": EngineEntry(
        factory="nopad.runtime.engines.tensorrt:TensorRTEngine",
        targets=("tensorrt",),
        need=Need(modules=("tensorrt", "cuda"), extra="tensorrt"),
    ),
    "tensorrt-rtx": EngineEntry(
        factory="nopad.runtime.engines.tensorrt:TensorRTRTXEngine",
        targets=("tensorrt-rtx",),
        need=Need(modules=("tensorrt_rtx", "cuda"), extra="tensorrt-rtx"),
    ),
    "onnx-tensorrt": EngineEntry(
        factory="nopad.runtime.engines.onnx_gpu:OnnxTensorRTEngine",
        targets=("onnx",),
        need=Need(modules=("onnxruntime",), extra="onnx-gpu"),
    ),
    "onnx-cuda": EngineEntry(
        factory="nopad.runtime.engines.onnx_gpu:OnnxCudaEngine",
        targets=("onnx",),
        need=Need(modules=("onnxruntime",), extra="onnx-gpu"),
    ),
    "torch": EngineEntry(
        factory="nopad.runtime.engines.torch:TorchEngine",
        targets=("torch",),
        need=Need(modules=("torch", "safetensors"), extra="export"),
        cpu=True,
    ),
    "openvino": EngineEntry(
        factory="nopad.runtime.engines.openvino:OpenVinoEngine",
        targets=("openvino", "onnx"),
        need=Need(modules=("openvino",), extra="openvino"),
        gpu=False,
        cpu=True,
    ),
    "onnx-cpu": EngineEntry(
        factory="nopad.runtime.engines.onnx_cpu:OnnxCpuEngine",
        targets=("cpu", "onnx"),
        need=Need(modules=("onnxruntime",), extra="cpu"),
        gpu=False,
        cpu=True,
    ),
}
# Targets of artifacts that run on GPUs.
GPU_TARGETS = frozenset(target for entry in ENGINES.values() if entry.gpu for target in entry.targets)


def engine_factory(name: str) -> EngineFactory:
    """The factory of a registered engine. Raises `UsageError` for an unknown name."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}; this nopad has: auto, {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].factory.partition(":")
    factory: EngineFactory = getattr(importlib.import_module(module), attribute)
    return factory


def named_engines(given: str) -> str | list[str]:
    """Engines as options name them, as `load` takes them: one, or several in order, separated by commas."""
    return [name.strip() for name in given.split(",")] if "," in given else given
