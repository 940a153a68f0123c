"""Every runner by its name: how it is opened, what it imports, what it lacks here. Libraries are imported when opened.

A runner takes strings and returns logits, so its time includes tokenization.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from nopad.bench.subjects.nopad import NopadRunner
from nopad.bench.subjects.padded_graphs import OpenVinoRunner, OptimumRunner
from nopad.bench.subjects.spec import Runner, Spec
from nopad.bench.subjects.transformers import TransformersRunner
from nopad.model.packages import COMPETITOR_NEEDS, importable, install_hint, missing

# How a spec's `runner` is opened.
RUNNERS: dict[str, Callable[[Spec], Runner]] = {
    "nopad": NopadRunner,
    "transformers": TransformersRunner,
    "optimum": OptimumRunner,
    "openvino": OpenVinoRunner,
}
# What each imports before it opens anything: its import time.
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "nopad": ("nopad.runtime.predictor", "onnxruntime"),
    "transformers": ("torch", "transformers", "transformers.models.auto.modeling_auto"),
    "optimum": ("tokenizers", "onnxruntime"),
    "openvino": ("tokenizers", "openvino"),
}


def lacks(spec: Spec) -> str | None:
    """What this subject needs and is not installed, and what to do; None if nothing is known to be missing."""
    if spec.engine == "flash_attention_2" and not importable("flash_attn"):
        return "FlashAttention-2 (package flash-attn) is not installed; it needs a CUDA GPU of compute capability 8.0"
    need = COMPETITOR_NEEDS.get(spec.runner)  # nopad's engines say for themselves what they need
    absent = missing(need.modules) if need is not None else []
    return f"{', '.join(absent)} not installed: {install_hint(need.extra)}" if need and absent else None


def import_libraries(spec: Spec) -> None:
    """Import what the runner is going to need; a missing library is reported when the subject is opened."""
    names = LIBRARIES[spec.runner] if spec.engine != "torch" else ("nopad.runtime.predictor", "torch", "safetensors")
    modeling = f"transformers.models.{spec.model}.modeling_{spec.model}"
    for name in (*names, *((modeling,) if spec.runner == "transformers" else ())):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
