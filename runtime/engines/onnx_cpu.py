"""ONNX Runtime on the CPU: packed graphs of nopad, and padded graphs of optimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nopad.model.packing import IntArray, PackedBatch, to_padded
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.errors import BundleError, EngineError, EnvironmentProblem
from nopad.runtime.manifest import Artifact
from nopad.runtime.types import FloatArray


class OnnxCpuEngine:
    """One `InferenceSession`; ONNX Runtime allows concurrent runs on it."""

    name = "onnx-cpu"

    def __init__(self, path: Path, artifact: Artifact, options: EngineOptions) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise EnvironmentProblem("engine onnx-cpu needs ONNX Runtime: pip install 'nopad[cpu]'") from None
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # ORT's exception types are not public
            raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot open {path}: {error}") from None
        self._wanted = [node.name for node in self._session.get_inputs()]
        if sorted(self._wanted) != sorted(artifact.inputs):
            raise BundleError(f"{path} takes {self._wanted}, the manifest says {sorted(artifact.inputs)}")
        self._artifact = artifact
        self._pad_token_id = options.pad_token_id

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits of a batch; a padded graph's per-token logits are laid back onto the stream."""
        feeds = self._padded(batch) if self._artifact.layout == "padded" else self._packed(batch)
        try:
            logits = self._session.run(None, {name: feeds[name] for name in self._wanted})[0]
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {batch.num_tokens} tokens: {error}") from None
        logits = np.asarray(logits, dtype=np.float32)
        if self._artifact.layout == "padded" and logits.ndim == 3:
            stream = np.zeros((len(batch.input_ids), logits.shape[-1]), dtype=np.float32)
            real = batch.pad_index >= 0
            stream[batch.pad_index[real]] = logits[real]
            return stream
        return logits

    @staticmethod
    def _packed(batch: PackedBatch) -> dict[str, IntArray]:
        names = ("input_ids", "token_type_ids", "position_ids", "sequence_ids", "pad_index")
        return {name: getattr(batch, name) for name in names}

    def _padded(self, batch: PackedBatch) -> dict[str, IntArray]:
        input_ids, attention_mask, token_type_ids = to_padded(batch, self._pad_token_id)
        position_ids = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }

    def close(self) -> None:
        """Drop the session."""
        self._session = None
