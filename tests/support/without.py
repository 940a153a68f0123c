"""A Python program in a process of its own, in which some modules cannot be imported. A helper, no tests."""

import subprocess
import sys

FORBID = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Forbid())
"""


def python(program: str, forbidden: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    head = f"FORBIDDEN = {forbidden!r}\n{FORBID}" if forbidden else ""
    command = [sys.executable, "-c", head + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
