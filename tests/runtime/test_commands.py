"""The command line itself: help, exit codes, `inspect`, `doctor`, what each failure prints."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import nopad.runtime.errors
from nopad.runtime import cli
from nopad.runtime.cli import COMMANDS, run
from nopad.runtime.errors import NopadError

NAME = "modernbert-single-mean"
Bundles = Callable[[str], Path]


def test_the_root_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert name in printed and text.split()[0] in printed
    assert "Exit codes" in printed
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("nopad, version ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_and_common_ones_are_everywhere(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "--help"]) == 0
    printed = capsys.readouterr().out
    for option in ("--json", "--quiet", "--threads"):
        assert option in printed
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(__import__(module, fromlist=[attribute]), attribute)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            # A number whose name says it all (--learning-rate) shows at least its default.
            assert parameter.help or parameter.default is not None, f"{name} {parameter.name}"


@pytest.mark.parametrize("arguments", [["fly"], ["predict", "--fly"], ["export", "x"], ["parity"], ["--fly"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_the_error_tree_is_as_it_is_drawn() -> None:
    drawn = dict(re.findall(r"([A-Z]\w+) +(\d)(?:\s|$)", nopad.runtime.errors.__doc__ or ""))
    kinds = {name: getattr(nopad.runtime.errors, name) for name in nopad.runtime.errors.__all__}
    assert set(drawn) == set(kinds)
    for name, kind in kinds.items():
        assert issubclass(kind, NopadError) and kind.exit_code == int(drawn[name]), name


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (nopad.runtime.errors.BundleError("the thing"), 3, "nopad: the thing"),
        (nopad.runtime.errors.EngineError("the engine"), 4, "nopad: the engine"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 4, "out of memory"),
        (OSError(errno.ENOSPC, "No space left", "/big"), 4, "the disk is full (/big); free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/root"), 3, "Permission denied (/root)"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 4, "pip install 'nopad[export]'"),
        (ModuleNotFoundError("No module named 'datasets.x'", name="datasets.x"), 4, "pip install 'nopad[train]'"),
    ],
)
def test_failures_become_one_line_and_a_code(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setitem(sys.modules, "failing", types.SimpleNamespace(fail=fail))
    monkeypatch.setitem(cli.COMMANDS, "fail", ("failing:fail", "Fails."))
    assert run(["fail"]) == code
    out, err = capsys.readouterr()
    assert words in err and out == "" and len(err.strip().splitlines()) == 1


def test_our_own_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fail() -> None:
        import no_such_module_of_ours  # type: ignore[import-not-found]  # noqa: F401

    monkeypatch.setitem(sys.modules, "failing", types.SimpleNamespace(fail=fail))
    monkeypatch.setitem(cli.COMMANDS, "fail", ("failing:fail", "Fails."))
    with pytest.raises(ModuleNotFoundError):
        run(["fail"])


def test_inspect_shows_what_the_manifest_says(
    bundle: Bundles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(bundle(NAME), tmp_path / "bundle"))
    capsys.readouterr()
    assert run(["inspect", str(own), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("path") == str(own)
    assert shown == json.loads((own / "manifest.json").read_text("utf-8"))
    assert run(["inspect", str(own)]) == 0
    printed = capsys.readouterr().out
    rows = shown["artifacts"][0]["parity"]["rows"]
    for words in ("verified", "text-classification", "class 0, class 1", "SHA-256 checked", f"{len(rows)} of"):
        assert words in printed
    data = bytearray((own / "model.onnx").read_bytes())
    data[1000] ^= 1
    (own / "model.onnx").write_bytes(data)
    assert run(["inspect", str(own)]) == 3
    assert "model.onnx is damaged" in capsys.readouterr().err
    assert run(["inspect", str(own), "--no-verify"]) == 0
    assert "not checked" in capsys.readouterr().out


def test_doctor_reports_and_its_code_follows(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    checks: dict[str, dict[str, Any]] = {c["name"]: c for c in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {"python", "cpu", "gpu", "torch", "onnxruntime", "can train", "can export", "can predict"} <= set(checks)
    assert checks["onnxruntime"]["ok"] and checks["can predict"] == {"name": "can predict", "ok": True, "detail": "yes"}
    assert checks["embedded model"]["ok"] and "'negative'" in checks["embedded model"]["detail"]
    assert code == 0


def test_doctor_fails_without_an_engine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.metadata

    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("onnxruntime", "accelerate"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert run(["doctor"]) == 4
    printed = " ".join(capsys.readouterr().out.split())
    assert "pip install 'nopad[cpu]' (lacks onnxruntime)" in printed
    assert "pip install 'nopad[train]' (lacks accelerate)" in printed
