"""OpenVINO's package reports to its maker as it is imported; whatever of ours imports it keeps that out."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from nopad.model.packages import importable

ENGINE = """
from nopad.runtime.engines.openvino import import_openvino
assert import_openvino().__version__
"""
PRODUCTS = """
from nopad.bench.measure import products
products.M = products.K = products.N = 16
products._openvino(1)()
"""
# A package of that name which imports OpenVINO by itself, as the real one does, is on the path.
OPTIMUM_INTEL = """
from nopad.bench.subjects.optimum_intel import OptimumIntelRunner
from nopad.bench.subjects.spec import Spec
try:
    OptimumIntelRunner(Spec(name="", runner="", path=".", task="text-classification", threads=1, max_length=8))
except KeyError as error:
    assert error.args == ("opened",)
"""
EXPORT = """
from pathlib import Path
from nopad.bench.subjects.exports import export
try:
    export("optimum-intel", Path("."), Path("exported"), "text-classification")
except KeyError as error:
    assert error.args == ("opened",)
"""
OPTIMUM = """
import openvino
class OVModelForSequenceClassification:
    @staticmethod
    def from_pretrained(*arguments, **options):
        raise KeyError("opened")
"""
AFTER = """
import sys
assert "openvino" in sys.modules
print(*(name for name in sys.modules if name.startswith("openvino_telemetry")))
"""


def left(program: str, home: Path) -> set[str]:
    """What is in the home folder after `program`, which must have imported OpenVINO without its telemetry."""
    (home / "optimum").mkdir(parents=True)
    (home / "optimum" / "intel.py").write_text(OPTIMUM)
    environment = {**os.environ, "HOME": str(home)}
    environment["PYTHONPATH"] = os.pathsep.join([str(home), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-B", "-c", program + AFTER]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    return {path.name for path in home.iterdir()} - {"optimum"}


@pytest.mark.parametrize(
    "program", [ENGINE, PRODUCTS, OPTIMUM_INTEL, EXPORT], ids=["engine", "products", "runner", "export"]
)
def test_an_import_writes_nothing_and_starts_no_telemetry(program: str, tmp_path: Path) -> None:
    if not importable("openvino"):
        pytest.skip("needs OpenVINO")
    assert "intel" not in left(program, tmp_path / "home")


def test_nothing_else_imports_openvino() -> None:
    found = set()
    for folder in ("bench", "charts", "export", "model", "runtime", "scripts", "tests", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names: list[object] = []
                if isinstance(node, ast.Import):
                    names = [one.name for one in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module]
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                    names = [one.value for one in node.args if isinstance(one, ast.Constant)]
                if any(str(name).partition(".")[0] == "openvino" for name in names):
                    found.add(str(path.relative_to(ROOT)))
    assert found == {"runtime/engines/openvino.py"}
