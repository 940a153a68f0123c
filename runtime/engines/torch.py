"""The encoder in PyTorch: FlashAttention-2 over the packed stream on Ampere and newer, blockwise SDPA elsewhere.

The artifact is a checkpoint folder inside the bundle (`torch/config.json`, `torch/model.safetensors`). On a GPU, and in
bf16 on a CPU with its instructions, every weight keeps the type in which it is stored, so that the file carries the
precision policy; otherwise a CPU computes in fp32, and the engine says so.
The key `nopad` of `config.json` holds what transformers' own keys cannot say: the task, and how to pool embeddings.
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nopad.model.cpus import cpu_at_hand
from nopad.model.errors import CheckpointError
from nopad.model.packages import install_hint
from nopad.model.packing import PackedBatch
from nopad.runtime.batching import CPU_TOKENS, GPU_TOKENS
from nopad.runtime.engines.base import ENGINES, EngineOptions
from nopad.runtime.engines.hardware import CAPABILITIES, sm_of
from nopad.runtime.errors import BundleError, EngineError, EnvironmentProblem
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray

_INPUTS = ("input_ids", "position_ids", "sequence_ids", "pad_index", "token_type_ids", "prompt_lengths")
_PRECISIONS = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
log = logging.getLogger("nopad")


class TorchEngine:
    """The packed encoder in evaluation mode, on the first GPU or the CPU. Forward passes share no mutable state.

    `threads` is PyTorch's setting for the whole process; one that was asked for is restored before a batch.
    """

    name = "torch"
    profiles: tuple[ShapeProfile, ...] = ()

    def __init__(self, path: Path, artifact: Artifact, options: EngineOptions) -> None:
        try:
            self._torch: Any = importlib.import_module("torch")
            importlib.import_module("safetensors")
        except (ImportError, OSError) as error:  # OSError: from its shared libraries
            raise EnvironmentProblem(
                f"engine torch needs torch and safetensors ({error}): {install_hint(ENGINES[self.name].need.extra)}"
            ) from None
        from nopad.model.checkpoint.load import load_checkpoint

        torch = self._torch
        self._asked_threads = options.threads
        self._set_threads()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.token_budget = GPU_TOKENS if self._device.type == "cuda" else CPU_TOKENS
        if self._device.type == "cuda":
            _require_precision(artifact.precision, sm_of(*torch.cuda.get_device_capability(self._device)))
        try:
            encoder = load_checkpoint(path.parent).encoder
        except CheckpointError as error:
            raise BundleError(f"engine torch cannot open {path.parent}: {error}") from None
        stored = stored_types(path)
        if artifact.precision not in {_PRECISIONS.get(str(dtype), "") for dtype in stored.values()}:
            raise BundleError(f"{path} holds no {artifact.precision} weights, as the manifest says; export again")
        if encoder.encoder_config.block != artifact.token_multiple:
            raise BundleError(
                f"{path.parent} takes streams of multiples of {encoder.encoder_config.block} tokens, the manifest says "
                f"{artifact.token_multiple}"
            )
        try:
            if self._device.type == "cuda" or _computes(artifact.precision):
                cast_as(encoder, stored)
            self._encoder: Any = encoder.to(self._device).requires_grad_(False)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise EnvironmentProblem(f"engine torch: the GPU has too little memory for {path}: {error}") from None
        except RuntimeError as error:  # from CUDA
            raise EnvironmentProblem(f"engine torch cannot start on {self._device}: {error}") from None

    @property
    def threads(self) -> int:
        """PyTorch's current number of threads."""
        return int(self._torch.get_num_threads())

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits of a batch."""
        encoder, torch = self._encoder, self._torch
        if encoder is None:
            raise EngineError("engine torch is closed")
        self._set_threads()
        try:
            with torch.inference_mode():
                inputs = {name: torch.from_numpy(getattr(batch, name)).to(self._device) for name in _INPUTS}
                return np.asarray(encoder(**inputs).float().cpu().numpy(), dtype=np.float32)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise EngineError(f"the GPU ran out of memory on {batch.num_tokens} tokens: {error}") from None
        except Exception as error:
            raise EngineError(f"PyTorch failed on {batch.num_tokens} tokens: {error}") from None

    def differentiable(self) -> Any:
        """A copy of the encoder with modules of its own; weights in fp32 are the engine's, others copied to fp32."""
        encoder = self._encoder
        if encoder is None:
            raise EngineError("engine torch is closed")
        weights = list(encoder.parameters())
        exact = all(weight.dtype == self._torch.float32 for weight in weights)
        copied = copy.deepcopy(encoder, {id(weight): weight for weight in weights} if exact else {})
        return copied if exact else copied.float()

    def _set_threads(self) -> None:
        if self._asked_threads is not None and self._asked_threads != self._torch.get_num_threads():
            self._torch.set_num_threads(self._asked_threads)

    def close(self) -> None:
        """Drop the weights, and release the GPU's memory."""
        if self._encoder is not None and self._device.type == "cuda":
            self._torch.cuda.empty_cache()
        self._encoder = None


def stored_types(path: Path) -> dict[str, Any]:
    """Name of each weight in a safetensors file -> its torch dtype."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 (no mapping)


def cast_as(encoder: Any, types: Mapping[str, Any]) -> None:
    """Cast every weight of `encoder` to its type in `types`, in place; for tied weights, either name is enough."""
    for name, parameter in encoder.named_parameters():
        if name in types:
            parameter.data = parameter.data.to(types[name])


def _computes(precision: str) -> bool:
    """Whether this CPU computes in `precision`; says so where it takes fp32 instead."""
    if precision == "bf16" and cpu_at_hand().bf16:
        return True
    if precision != "fp32":
        reason = f"this CPU has no bf16 instructions, {cpu_at_hand()}" if precision == "bf16" else "a CPU has no fp16"
        log.warning("engine torch computes a file in %s in fp32: %s", precision, reason)
    return False


def _require_precision(precision: str, sm: str) -> None:
    capability = CAPABILITIES.get(sm)
    if capability is not None and precision not in capability.precisions:
        raise EnvironmentProblem(
            f"engine torch: {sm}, {capability.name}, has no {precision}; export the bundle in "
            f"{capability.precisions[0]}"
        )
