"""ONNX Runtime on the CPU: graphs in its own CPU operators, plain ONNX, and the padded graphs of optimum."""

from __future__ import annotations

import os
from pathlib import Path

from nopad.runtime.batching import cpu_token_budget
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.onnx_session import (
    STOP_SPINNING,
    OnnxEngine,
    Provider,
    exact_int8,
    import_onnxruntime,
    open_session,
    session_options,
)
from nopad.runtime.manifest import Artifact

_CPU: Provider = ("CPUExecutionProvider", {})


class OnnxCpuEngine(OnnxEngine):
    """ONNX Runtime's own CPU kernels."""

    name = "onnx-cpu"

    def __init__(self, path: Path, artifact: Artifact, options: EngineOptions) -> None:
        ort = import_onnxruntime(self.name)
        # int8 of 7 bits, as bundles were once written, is exact as it is.
        eight_bits = (artifact.quantized or {}).get("weight_bits") == 8
        config = {**STOP_SPINNING, **(exact_int8() if eight_bits else {})}
        settings = session_options(ort, options.threads, config)
        super().__init__(open_session(ort, path, settings, [_CPU]), path, artifact, options)
        self.token_budget = cpu_token_budget(options.threads or os.cpu_count() or 1)
