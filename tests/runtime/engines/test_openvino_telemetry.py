"""OpenVINO's package reports to its maker as it is imported; the engine keeps that out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nopad.model.packages import importable

PROGRAM = """
import sys
from nopad.runtime.engines.openvino import _import_openvino
assert _import_openvino().__version__
print(*(name for name in sys.modules if name.startswith("openvino_telemetry")))
"""


def test_the_import_writes_nothing_and_starts_no_telemetry(tmp_path: Path) -> None:
    if not importable("openvino"):
        pytest.skip("needs OpenVINO")
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [] and list(tmp_path.iterdir()) == []
