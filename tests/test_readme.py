"""The commands of README and tutorial parse; the README's Python runs, and its names exist."""

import re
import shlex

import pytest
from repository import ROOT

from nopad.runtime.cli import COMMANDS, cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
SHELL = [
    line
    for kind, block in BLOCKS + re.findall(r"```(\w*)\n(.*?)```", TUTORIAL, flags=re.DOTALL)
    if kind in ("", "sh", "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("nopad ")
]


def test_the_readme_has_commands() -> None:
    assert len(SHELL) >= 5


@pytest.mark.parametrize("line", SHELL)
def test_commands_parse(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    context = cli.make_context("nopad", ["--help"], resilient_parsing=True)
    command = cli.get_command(context, name)  # type: ignore[attr-defined]
    assert command is not None, name
    command.make_context(name, arguments, parent=context)  # its options are cached with the parent's settings


def test_every_command_is_named() -> None:
    assert f"`{' '.join(COMMANDS)}`" in README


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([\w-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_first_python_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    block = next(block for kind, block in BLOCKS if kind == "python")
    exec(compile(block, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["negative", "positive"]


def test_the_explanation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    block = next(block for kind, block in BLOCKS if kind == "python" and "explain(" in block)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0].startswith("dull 2 6 ")


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
