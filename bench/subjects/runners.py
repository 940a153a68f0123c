"""Every runner by its name: how it is opened, what it imports, what it lacks here. Libraries are imported when opened.

A runner takes strings and returns logits, so its time includes tokenization.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from nopad.bench.subjects.embedders import FastembedRunner, SentenceTransformersRunner
from nopad.bench.subjects.nopad import NopadRunner
from nopad.bench.subjects.optimum_intel import OptimumIntelRunner
from nopad.bench.subjects.padded_graphs import OpenVinoRunner, OptimumRunner
from nopad.bench.subjects.spec import Runner, Spec
from nopad.bench.subjects.transformers import TransformersRunner
from nopad.model.cpus import cpu_at_hand
from nopad.model.packages import COMPETITOR_NEEDS, importable, install_hint, missing
from nopad.runtime.engines.base import ENGINES
from nopad.runtime.engines.gpus import gpu_at_hand

# How a spec's `runner` is opened.
RUNNERS: dict[str, Callable[[Spec], Runner]] = {
    "nopad": NopadRunner,
    "transformers": TransformersRunner,
    "optimum": OptimumRunner,
    "openvino": OpenVinoRunner,
    "optimum-intel": OptimumIntelRunner,
    "sentence-transformers": SentenceTransformersRunner,
    "fastembed": FastembedRunner,
}
# What each imports before it opens anything: its import time.
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "nopad": ("nopad.runtime.predictor",),  # and what its engine needs
    "transformers": ("torch", "transformers", "transformers.models.auto.modeling_auto"),
    "optimum": ("tokenizers", "onnxruntime"),
    "openvino": ("tokenizers", "openvino"),
    "optimum-intel": ("optimum.intel",),
    "sentence-transformers": ("sentence_transformers",),
    "fastembed": ("fastembed",),
}


def lacks(spec: Spec) -> str | None:
    """What this subject needs and is not here, and what to do; None if nothing is known to be missing."""
    if spec.engine == "flash_attention_2" and not importable("flash_attn"):
        return "FlashAttention-2 (package flash-attn) is not installed; it needs a CUDA GPU of compute capability 8.0"
    need = COMPETITOR_NEEDS.get(spec.need)  # nopad's engines say for themselves what they need
    if need is None:
        return None
    absent = missing(need.modules)
    if absent:
        return f"{', '.join(absent)} not installed: {install_hint(need.extra)}"
    if spec.precision == "bf16" and not cpu_at_hand().bf16 and gpu_at_hand() is None:
        return "this CPU has no instructions for bf16 (avx512_bf16, amx_bf16): it would compute in fp32, and convert"
    return None


def import_libraries(spec: Spec) -> None:
    """Import what the runner is going to need; a missing library is reported when the subject is opened."""
    own = ENGINES[spec.engine].need.modules if spec.runner == "nopad" else ()
    modeling = f"transformers.models.{spec.model}.modeling_{spec.model}"
    for name in (*LIBRARIES[spec.runner], *own, *((modeling,) if spec.runner == "transformers" else ())):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
