"""Listing the GPUs of a machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cuda_double import A10, T4, FakeCuda

from nopad.runtime.engines.gpus import gpus


def test_gpus_are_listed_without_raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", FakeCuda(T4, A10))
    assert [(gpu.name, gpu.sm, gpu.memory) for gpu in gpus()] == [
        ("Tesla T4", "sm75", 1 << 30),
        ("NVIDIA A10", "sm86", 1 << 30),
    ]
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ()
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA L4, 8.9, 23034'\n")
    script.chmod(0o755)
    assert [(gpu.name, gpu.sm, gpu.memory) for gpu in gpus()] == [("NVIDIA L4", "sm89", 23034 << 20)]
    for text in ("echo 'GPU requires reset, [N/A], [N/A]'", "exit 9"):
        script.write_text(f"#!/bin/sh\n{text}\n")
        assert gpus() == ()
