"""Paths of the repository and the test data, and the scripts as modules. Helpers, no tests."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("NOPAD_DATA") or ROOT.parent / "shared" / "data")


def load_script(name: str) -> ModuleType:
    """`scripts/NAME.py`, imported."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # its dataclasses look themselves up
    specification.loader.exec_module(module)
    return module
