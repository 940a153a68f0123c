"""The documented error tree is that of all packages, with the exit code of each error."""

import importlib
import re
from collections.abc import Iterator

from repository import ROOT

from nopad.model.errors import NopadError
from nopad.runtime import errors

FOLDERS = ("adapters", "charts", "model", "training", "export", "runtime", "bench", "pipeline")
DRAWN = re.findall(r"^([| +-]*)([A-Z]\w+) +(\d)(.*)$", errors.__doc__ or "", flags=re.MULTILINE)


def kinds() -> Iterator[type[Exception]]:
    """Every exception that nopad defines for others to catch: not the server's, which are answers over HTTP."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.is_relative_to(ROOT / "runtime" / "server"):
                continue
            if re.search(r"^class \w+\(\w*(Error|Exception|Problem)\)", path.read_text("utf-8"), flags=re.MULTILINE):
                name = ".".join(("nopad", *path.relative_to(ROOT).with_suffix("").parts))
                for value in vars(importlib.import_module(name)).values():
                    own = isinstance(value, type) and value.__module__ == name
                    if own and issubclass(value, Exception) and not value.__name__.startswith("_"):
                        yield value


def test_the_tree_is_drawn_as_it_is() -> None:
    found = {kind.__name__: kind for kind in kinds()}
    assert sorted(name for _, name, _, _ in DRAWN) == sorted(found)
    above: list[str] = []  # the last name at each depth
    for branch, name, code, words in DRAWN:
        kind, depth = found[name], len(branch) // 3
        assert issubclass(kind, NopadError) and kind.exit_code == int(code), name
        above[depth:] = [name]
        assert depth == 0 or kind.__base__ is found[above[depth - 1]], name
        place = re.search(r"\((nopad[\w.]+)", words)
        assert depth == 0 or kind.__module__ == (place[1] if place else errors.__name__), name
    assert above[0] == "NopadError"


def test_what_the_module_exports_is_the_part_of_the_tree_that_it_knows() -> None:
    known = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, NopadError)]
    assert sorted(known) == sorted(errors.__all__)
