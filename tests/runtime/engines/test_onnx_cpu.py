"""ONNX Runtime on the CPU: threads and token budget."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nopad.runtime.batching import CPU_TOKENS
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.onnx_cpu import LEAST_TOKENS, OnnxCpuEngine
from nopad.runtime.manifest import Artifact

Graphs = Callable[[str], tuple[Path, Artifact]]


@pytest.mark.parametrize(("threads", "tokens"), [(1, LEAST_TOKENS), (2, 512), (4, 1024), (64, CPU_TOKENS)])
def test_micro_batches_grow_with_the_threads_up_to_a_limit(threads: int, tokens: int, graph: Graphs) -> None:
    engine = OnnxCpuEngine(*graph("modernbert-single-mean"), EngineOptions(threads=threads))
    assert (engine.threads, engine.token_budget) == (threads, tokens)


def test_threads_that_nobody_chose_are_the_librarys(graph: Graphs) -> None:
    engine = OnnxCpuEngine(*graph("modernbert-single-mean"), EngineOptions())
    assert engine.threads is None
    assert engine.token_budget == min(CPU_TOKENS, max(LEAST_TOKENS, 256 * (os.cpu_count() or 1)))
