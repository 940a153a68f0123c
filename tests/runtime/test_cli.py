"""The `nopad` command as a whole: help, the environment, exit codes."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import click
import pytest

import nopad.runtime.errors as errors
from nopad.model.packages import PACKAGES
from nopad.runtime import cli
from nopad.runtime.cli import COMMANDS, run
from nopad.runtime.errors import NopadError

HEAVY = {"torch", "transformers", "onnxruntime", "onnx", "onnxscript", "datasets", "sklearn", "safetensors"}
Capture = pytest.CaptureFixture[str]
Raising = Callable[..., None]


failure: list[BaseException] = []


@click.command()
def failing() -> None:
    """Raise the error that a test names."""
    raise failure.pop()


@click.command()
@click.argument("code", type=int)
def answering(code: int) -> int | None:
    """Return a code; for 99, nothing."""
    return None if code == 99 else code


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Raising:
    """Replace a command by another that raises this error."""

    def put(error: BaseException, name: str = "predict") -> None:
        failure[:] = [error]
        monkeypatch.setitem(
            sys.modules, f"nopad.{COMMANDS[name][0]}.commands.{name}", SimpleNamespace(**{name: failing})
        )

    return put


def command(name: str) -> click.Command:
    found = cli.cli.get_command(click.Context(cli.cli), name)
    assert found is not None
    return found


def test_the_root_help_names_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from nopad.runtime.cli import run; code = run(['--help'])\n"
        "print(code, *{name.split('.')[0] for name in sys.modules}, *(n for n in sys.modules if 'nopad' in n))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    *printed, last = done.stdout.splitlines()
    code, *modules = last.split()
    assert code == "0" and done.stderr == ""
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^ +{name} +{re.escape(text[:30])}", "\n".join(printed), flags=re.MULTILINE), name
    assert "click" in modules and not HEAVY & set(modules)
    assert not [name for name in modules if name.startswith(("nopad.runtime.commands", "nopad.export"))]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_explains_every_option(name: str, capsys: Capture) -> None:
    assert run([name, "--help"]) == run([name, "-h"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"Usage: nopad {name} ")
    context = click.Context(command(name), info_name=name, show_default=True)
    options = [option for option in command(name).get_params(context) if isinstance(option, click.Option)]
    assert {"--json", "--quiet", "--help"} <= {text for option in options for text in option.opts}
    for option in options:
        shown, text = option.get_help_record(context) or ("", "")
        assert shown.split()[0].rstrip(",") in out
        assert text and option.help, f"{shown} has no help text"


def test_threads_are_an_option_of_the_commands_that_compute() -> None:
    have = {name for name in COMMANDS if any("--threads" in option.opts for option in command(name).params)}
    serving = {"predict", "explain", "serve", "analyze", "bench", "demo"}
    assert have == {"train", "export", "parity", "calibrate", "tune", *serving}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_is_set_in_the_environment_by_the_name_it_has_on_the_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [option for option in command(name).params if isinstance(option, click.Option)]
    assert len(options) >= 2
    for option in options:
        long = next(text for text in option.opts if text.startswith("--"))
        variable = f"NOPAD_{name}_{long[2:]}".replace("-", "_").upper()
        monkeypatch.setenv(variable, "here")
        assert option.resolve_envvar_value(click.Context(command(name))) == "here", variable


def test_the_version_is_the_installed_one(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOPAD_VERSION", "0.1.0")  # a deployment's own variable, not an option
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"nopad, version {importlib.metadata.version('nopad')}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Usage: nopad "),
        (["fly"], "No such command 'fly'"),
        (["--fly"], "No such option"),
        (["predict", "--fly"], "No such option"),
        (["export", "checkpoint"], "Missing option '--output'"),
        (["parity"], "Missing argument 'BUNDLE'"),
        (["inspect", "one", "two"], "unexpected extra argument"),
        (["predict", "--threads", "many"], "'many' is not a valid integer"),
        (["doctor", "--threads", "1"], "No such option"),
    ],
)
def test_wrong_usage_is_told_on_stderr_with_code_2(arguments: list[str], words: str, capsys: Capture) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert words in err and "Usage: nopad " in err and out == ""


@pytest.mark.parametrize("kind", [getattr(errors, name) for name in errors.__all__], ids=lambda kind: kind.__name__)
def test_every_error_becomes_its_code_and_one_line(kind: type[NopadError], raising: Raising, capsys: Capture) -> None:
    raising(kind("what is wrong: do this"))
    assert run(["predict"]) == kind.exit_code
    assert capsys.readouterr() == ("", "nopad: what is wrong: do this\n")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 4, "out of memory; use a smaller model"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (errors.Terminated(), 143, "terminated"),
        (OSError(errno.ENOSPC, "No space left on device", "/big"), 4, "the disk is full (/big); free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 4, "the disk is full; free some space"),
        (OSError(errno.EFBIG, "File too large"), 4, "the disk is full; free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 3, "Permission denied (/root/x)"),
        (OSError("the Hub has no such model"), 3, "the Hub has no such model"),
    ],
)
def test_a_failure_of_the_machine_becomes_its_code_and_one_line(
    error: BaseException, code: int, words: str, raising: Raising, capsys: Capture
) -> None:
    raising(error)
    assert run(["predict"]) == code
    out, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert line.startswith(f"nopad: {words}") and out == ""


@pytest.mark.parametrize("package", [module for module, package in PACKAGES.items() if package.extras])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, raising: Raising, capsys: Capture
) -> None:
    extras = PACKAGES[package].extras  # a command's own goes before the usual one
    for name, extra in (("parity", extras[0]), ("train", "train" if "train" in extras else extras[0])):
        raising(ModuleNotFoundError(f"No module named '{package}.core'", name=f"{package}.core"), name)
        assert run([name]) == 4
        assert capsys.readouterr().err == f"nopad: this needs the package {package}: pip install 'nopad[{extra}]'\n"


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'ours'", name="ours"), ModuleNotFoundError("?"), ValueError("bug")]
)
def test_a_bug_of_our_own_is_not_dressed_up(error: Exception, raising: Raising, capsys: Capture) -> None:
    raising(error)
    with pytest.raises(type(error)) as caught:
        run(["predict"])
    assert caught.value is error and capsys.readouterr().err == ""


@pytest.mark.parametrize(("returned", "code"), [(0, 0), (1, 1), (3, 3), (99, 0)])
def test_what_a_command_returns_is_the_exit_code(returned: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "answer", ("runtime", ""))
    monkeypatch.setitem(sys.modules, "nopad.runtime.commands.answer", SimpleNamespace(answer=answering))
    assert run(["answer", str(returned)]) == code
    with pytest.raises(SystemExit) as left:
        cli.main(["answer", str(returned)])
    assert left.value.code == code
