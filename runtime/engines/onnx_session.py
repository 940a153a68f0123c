"""What the ONNX Runtime engines share: the library, settings, sessions, and running graphs.

Knows no execution provider: `onnx_cpu` and `onnx_gpu` choose theirs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nopad.model.cpus import cpu_at_hand
from nopad.model.packages import install_hint
from nopad.model.packing import PackedBatch
from nopad.runtime.batching import CPU_TOKENS
from nopad.runtime.engines.base import ENGINES, EngineOptions
from nopad.runtime.engines.feeds import graph_inputs, on_stream
from nopad.runtime.errors import BundleError, EngineError, EnvironmentProblem
from nopad.runtime.manifest import Artifact
from nopad.runtime.profiles import ShapeProfile
from nopad.runtime.types import FloatArray

Provider = tuple[str, dict[str, str]]
# A session configuration entry: otherwise the threads keep spinning for a while after a run, on cores that other
# libraries could use.
STOP_SPINNING = {"session.force_spinning_stop": "1"}


def exact_int8() -> dict[str, str]:
    """The session configuration entries with which products of 8-bit weights are right on this CPU.

    Without VNNI the kernels of unsigned x signed 8 bits add pairs of products in 16 bits, and saturate: answers are
    silently wrong (docs/int8.md). Unsigned weights are exact everywhere, and with VNNI 1.7 times as slow.
    """
    return {} if cpu_at_hand().vnni else {"session.x64quantprecision": "1"}


def import_onnxruntime(engine: str) -> Any:
    """ONNX Runtime, whichever package brings it. Raises `EnvironmentProblem`."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        hint = install_hint(ENGINES[engine].need.extra)
        raise EnvironmentProblem(f"engine {engine} needs ONNX Runtime: {hint}") from None


def session_options(ort: Any, threads: int | None, config: Mapping[str, str] | None = None) -> Any:
    """`SessionOptions` with `threads` (None: ONNX Runtime's own choice) that log errors only.

    `config`: entries of `onnxruntime_session_options_config_keys.h`.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options


def open_session(ort: Any, path: Path, options: Any, providers: Sequence[Provider]) -> Any:
    """An `InferenceSession` with these providers (name, options) and no silent fallback. Raises `BundleError`."""
    try:
        # Otherwise a provider that fails, now or in a later run, is silently replaced by the CPU's.
        return ort.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # ORT's exception types are not public
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot open {path}: {error}") from None


class OnnxEngine:
    """Runs an open `InferenceSession`; ONNX Runtime allows concurrent runs on it."""

    name = "onnx"
    token_budget = CPU_TOKENS
    profiles: tuple[ShapeProfile, ...] = ()

    def __init__(self, session: Any, path: Path, artifact: Artifact, options: EngineOptions) -> None:
        self._session: Any = session
        self._input_names = [node.name for node in session.get_inputs()]
        if sorted(self._input_names) != sorted(artifact.inputs):
            raise BundleError(f"{path} takes {self._input_names}, the manifest says {sorted(artifact.inputs)}")
        self._artifact = artifact
        self.threads: int | None = int(session.get_session_options().intra_op_num_threads) or None  # 0: its own choice
        self._pad_token_id = options.pad_token_id

    def run(self, batch: PackedBatch) -> FloatArray:
        """Logits of a batch; a padded graph's per-token logits are put back on the stream."""
        session = self._session
        if session is None:
            raise EngineError(f"engine {self.name} is closed")
        feeds = graph_inputs(batch, self._artifact, self._pad_token_id)
        try:
            logits = session.run(None, {name: feeds[name] for name in self._input_names})[0]
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {batch.num_tokens} tokens: {error}") from None
        return on_stream(np.asarray(logits, dtype=np.float32), batch, self._artifact)

    def close(self) -> None:
        """Drop the session."""
        self._session = None
