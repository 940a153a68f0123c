"""ONNX Runtime on the CPU: threads and token budget."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from nopad.model.cpus import Cpu
from nopad.runtime.batching import CPU_TOKENS, LEAST_TOKENS
from nopad.runtime.engines.base import EngineOptions
from nopad.runtime.engines.onnx_cpu import OnnxCpuEngine
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


@pytest.mark.parametrize(
    ("bits", "features", "exact"),
    [
        (8, ("avx2",), True),
        (8, ("avx2", "avx512f"), True),
        (8, (), True),  # a CPU that is not known
        (8, ("avx2", "avx512f", "avx512_vnni"), False),
        (8, ("avx2", "avx_vnni"), False),
        (7, ("avx2",), False),
        (None, ("avx2",), False),
    ],
)
def test_eight_bit_weights_are_opened_so_that_no_kernel_saturates(
    bits: int | None, features: tuple[str, ...], exact: bool, graph: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nopad.runtime.engines.onnx_session.cpu_at_hand", lambda: Cpu("Intel", "Intel Xeon", features))
    entries: dict[str, str] = {}
    add = onnxruntime.SessionOptions.add_session_config_entry

    def note(options: Any, key: str, value: str) -> None:
        entries[key] = value
        add(options, key, value)

    monkeypatch.setattr(onnxruntime.SessionOptions, "add_session_config_entry", note)
    path, artifact = graph("modernbert-single-mean")
    quantized = None if bits is None else {"weight_bits": bits}
    OnnxCpuEngine(path, dataclasses.replace(artifact, quantized=quantized), EngineOptions(threads=1)).close()
    assert (entries.get("session.x64quantprecision") == "1") is exact
