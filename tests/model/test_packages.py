"""The table of packages and the extras of pyproject.toml agree, and no other file spells out an extra."""

import importlib.util
import re
import tomllib

import pytest
from repository import ROOT

from nopad.bench.subjects.competitors import COMPETITORS
from nopad.bench.subjects.runners import RUNNERS
from nopad.model.packages import (
    COMMAND_NEEDS,
    COMPETITOR_NEEDS,
    PACKAGES,
    Need,
    extra_of,
    importable,
    install_hint,
    missing,
    version_of,
)
from nopad.runtime.cli import COMMANDS
from nopad.runtime.engines.base import ENGINES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOLDERS = ("adapters", "charts", "model", "training", "export", "runtime", "bench", "pipeline")
NEEDS = [*COMMAND_NEEDS.items(), *((name, entry.need) for name, entry in ENGINES.items()), *COMPETITOR_NEEDS.items()]


def names(requirements: list[str]) -> set[str]:
    """The packages' names for pip; ONNX Runtime's builds, which bring the same module, share a name."""
    found = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}  # type: ignore[index]
    return {"onnxruntime" if name == "onnxruntime-gpu" else name for name in found}


def brought(extra: str) -> set[str]:
    """What an extra installs, with the extras of nopad that it names."""
    own = names(EXTRAS[extra])
    inner = [name for line in EXTRAS[extra] if line.startswith("nopad[") for name in line[6:-1].split(",")]
    return own.union(*map(brought, inner)) - {"nopad"}


@pytest.mark.parametrize("module", PACKAGES)
def test_the_extras_of_a_package_bring_it(module: str) -> None:
    package = PACKAGES[module]
    for extra in package.extras:
        assert package.name in names(EXTRAS[extra]), extra
    assert package.extras or package.name in names(PROJECT["dependencies"])


@pytest.mark.parametrize(
    "extra", [extra for extra in EXTRAS if extra not in ("docs", "test", "test-pages", "test-weights", "dev")]
)
def test_every_package_of_an_extra_is_known(extra: str) -> None:
    assert brought(extra) <= {package.name for package in PACKAGES.values()}


@pytest.mark.parametrize(("name", "need"), NEEDS, ids=lambda value: value if isinstance(value, str) else "")
def test_an_extra_brings_all_that_is_needed(name: str, need: Need) -> None:
    assert {PACKAGES[module].name for module in need.modules} <= brought(need.extra)


def test_the_needs_are_those_of_what_there_is() -> None:
    assert set(COMMAND_NEEDS) < set(COMMANDS)
    assert set(COMPETITOR_NEEDS) == {competitor.need for competitor in COMPETITORS.values()}
    assert {competitor.runner for competitor in COMPETITORS.values()} == set(RUNNERS) - {"nopad"}


def test_no_other_file_spells_out_what_to_install() -> None:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert path.name == "packages.py" or "nopad[" not in path.read_text("utf-8"), path


def test_a_command_gets_its_own_extra_if_that_brings_the_package() -> None:
    assert extra_of("torch") == "export" and extra_of("torch", "train") == "train"
    assert extra_of("onnx", "train") == "export"  # train does not bring it
    assert extra_of("numpy") is None and extra_of("nobody_knows") is None
    assert install_hint("cpu") == "pip install 'nopad[cpu]'"


def test_what_is_installed_is_asked_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version_of("nopad") == PROJECT["version"] and version_of("nobody-knows") is None
    assert missing(["numpy", "nobody_knows"]) == ["nobody_knows"]

    def forbidden(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", forbidden)  # as an import hook may
    assert not importable("numpy")
