"""The `nopad` command as a whole: help, the environment, exit codes, `inspect` and `doctor`."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

import nopad.runtime.errors as errors
from nopad.model.packages import PACKAGES
from nopad.runtime import cli
from nopad.runtime.bundle import open_bundle, write_manifest
from nopad.runtime.cli import COMMANDS, run
from nopad.runtime.errors import NopadError

NAME = "modernbert-single-mean"
HEAVY = {"torch", "transformers", "onnxruntime", "onnx", "onnxscript", "datasets", "sklearn", "safetensors"}
Bundles = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
Raising = Callable[..., None]


@pytest.fixture
def own(bundle: Bundles, tmp_path: Path, capsys: Capture) -> Path:
    """A copy of the bundle, to be damaged."""
    folder = Path(shutil.copytree(bundle(NAME), tmp_path / "bundle"))
    capsys.readouterr()  # of its export
    return folder


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not folded."""
    monkeypatch.setenv("COLUMNS", "1000")


failure: list[BaseException] = []


@click.command()
def failing() -> None:
    """Raise what a test asks for."""
    raise failure.pop()


@click.command()
@click.argument("code", type=int)
def answering(code: int) -> int | None:
    """Return a code; for 99, nothing."""
    return None if code == 99 else code


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Raising:
    """Put a command in the place of another that raises this error."""

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
    assert {"--json", "--quiet", "--threads", "--help"} <= {text for option in options for text in option.opts}
    for option in options:
        shown, text = option.get_help_record(context) or ("", "")
        assert shown.split()[0].rstrip(",") in out
        assert text and option.help, f"{shown} has no help text"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_is_set_in_the_environment_by_the_name_it_has_on_the_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [option for option in command(name).params if isinstance(option, click.Option)]
    assert len(options) >= 3
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
        (["doctor", "--threads", "many"], "'many' is not a valid integer"),
    ],
)
def test_wrong_usage_is_told_on_stderr_with_code_2(arguments: list[str], words: str, capsys: Capture) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert words in err and "Usage: nopad " in err and out == ""


DRAWN = re.findall(r"^([| +-]*)([A-Z]\w+) +(\d)(?: |$)", errors.__doc__ or "", flags=re.MULTILINE)
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, NopadError)]


def test_the_error_tree_is_drawn_as_it_is() -> None:
    assert sorted(name for _, name, _ in DRAWN) == sorted(kind.__name__ for kind in KINDS) == sorted(errors.__all__)
    above: list[str] = []  # the last name at each depth
    for branch, name, code in DRAWN:
        kind, depth = getattr(errors, name), len(branch) // 3
        assert kind.exit_code == int(code), name
        above[depth:] = [name]
        assert depth == 0 or kind.__base__ is getattr(errors, above[depth - 1]), name
    assert above[0] == "NopadError"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_becomes_its_code_and_one_line(kind: type[NopadError], raising: Raising, capsys: Capture) -> None:
    raising(kind("what is wrong: do this"))
    assert run(["predict"]) == kind.exit_code
    assert capsys.readouterr() == ("", "nopad: what is wrong: do this\n")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 4, "out of memory; use a smaller model"),
        (KeyboardInterrupt(), 130, "interrupted"),
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


def test_inspect_shows_the_bundle_and_how_it_was_verified(own: Path, wide: None, capsys: Capture) -> None:
    assert run(["inspect", str(own)]) == 0
    out, err = capsys.readouterr()
    rows = {line[:13].strip(): line[14:].strip() for line in out.splitlines()}
    manifest = open_bundle(own).manifest
    checks = len(manifest.artifacts[0].parity["onnx-cpu"]["rows"])
    assert err == "" and rows["bundle"] == str(own) and rows["verdict"] == "verified"
    assert rows["task"] == "text-classification (single_label_classification)"
    assert rows["labels"] == "class 0, class 1, class 2" and rows["max length"] == "1024 tokens"
    assert rows["files"].startswith(f"{len(manifest.files)}, ") and rows["files"].endswith("SHA-256 checked")
    assert f"verified on onnx-cpu: {checks} of {checks} checks" in out and "worst logit difference" in out
    assert "input_ids[" in out and "cpu fp32, packed" in out


def test_inspect_shows_what_was_measured_on_data(wide: None, capsys: Capture) -> None:
    assert run(["inspect"]) == 0  # the embedded model was evaluated on real reviews
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation"))
    assert re.search(r"agreement 1.0000, label_mix \(negative 0\.\d+, positive 0\.\d+\).* accuracy 0\.8\d+", line)
    assert "mse" not in line


def test_inspect_json_is_the_manifest_and_the_path(own: Path, capsys: Capture) -> None:
    assert run(["inspect", str(own), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"path": str(own), **json.loads((own / "manifest.json").read_text("utf-8"))}


def test_inspect_shows_labels_and_failed_checks_as_they_are(own: Path, wide: None, capsys: Capture) -> None:
    manifest = open_bundle(own).manifest
    (artifact,) = manifest.artifacts
    report = json.loads(json.dumps(artifact.parity["onnx-cpu"])) | {"passed": False}
    report["rows"][0] |= {"passed": False, "case": "[/red] 12 tokens", "note": ":bug:"}
    odd = dataclasses.replace(manifest, labels=("[bold]", "[/bold]", ":bug:"))
    write_manifest(
        own, dataclasses.replace(odd, artifacts=(dataclasses.replace(artifact, parity={"onnx-cpu": report}),))
    )
    assert run(["inspect", str(own)]) == 0
    out = capsys.readouterr().out
    total = len(report["rows"])
    assert "[bold], [/bold], :bug:" in out and f"unverified on onnx-cpu: {total - 1} of {total} checks" in out
    assert re.search(r"failed +\w+.*, \[/red\] 12 tokens: .*\(bound .*\) :bug:", out)
    write_manifest(own, dataclasses.replace(manifest, artifacts=(dataclasses.replace(artifact, parity={}),)))
    assert run(["inspect", str(own)]) == 0
    out = capsys.readouterr().out
    assert "never checked: run nopad parity" in out and re.search("^verdict +unverified", out, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["model.cpu.onnx", "tokenizer.json"])
def test_inspect_finds_one_flipped_bit(name: str, own: Path, wide: None, capsys: Capture) -> None:
    data = bytearray((own / name).read_bytes())
    data[len(data) // 2] ^= 1
    (own / name).write_bytes(data)
    assert run(["inspect", str(own)]) == run(["inspect", str(own), "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count(f"{own / name} is damaged") == 2
    assert run(["inspect", str(own), "--no-verify"]) == 0
    assert "not checked" in capsys.readouterr().out
    (own / name).write_bytes(data[:-1])
    assert run(["inspect", str(own), "--no-verify"]) == 3
    assert f"{own / name} has {len(data) - 1} bytes" in capsys.readouterr().err


def test_inspect_refuses_what_is_no_bundle(own: Path, checkpoint: Bundles, tmp_path: Path, capsys: Capture) -> None:
    (own / "manifest.json").write_text((own / "manifest.json").read_text("utf-8").replace("class 0", "class 9"))
    for path, words in (
        (tmp_path / "absent", "the folder does not exist"),
        (checkpoint(NAME), "it is a checkpoint: export it first"),
        (own, "does not match its own manifest_sha256"),
    ):
        assert run(["inspect", str(path)]) == 3
        assert words in capsys.readouterr().err


def doctor(capsys: Capture) -> tuple[int, dict[str, dict[str, Any]]]:
    capsys.readouterr()
    code = run(["doctor", "--json"])
    checks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(set(check) == {"name", "ok", "detail"} for check in checks)
    return code, {check["name"]: check for check in checks}


def test_doctor_reports_the_machine_and_its_code_says_whether_it_can_predict(capsys: Capture) -> None:
    code, checks = doctor(capsys)
    assert {"python", "cpu", "gpu", "can train", "can export", "can predict", "embedded model"} <= set(checks)
    for check in checks.values():
        assert isinstance(check["ok"], bool) and check["detail"]
    for package in ("numpy", "tokenizers", "onnxruntime", "torch", "transformers", "datasets", "scikit-learn"):
        assert checks[package]["detail"].startswith(importlib.metadata.version(package)) and checks[package]["ok"]
    assert checks["python"]["detail"].startswith(sys.version.split()[0]) and "cores" in checks["cpu"]["detail"]
    assert code == (0 if checks["can predict"]["ok"] and checks["embedded model"]["ok"] else 4)


def test_doctor_tries_the_embedded_model(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("nopad.runtime.bundle.DEFAULT_BUNDLE", own)
    code, checks = doctor(capsys)
    assert code == 0 and re.match(
        r"answers 'class \d' \(0\.\d\d\) on engine onnx-cpu", checks["embedded model"]["detail"]
    )
    (own / "model.cpu.onnx").write_bytes(b"")
    code, checks = doctor(capsys)
    assert code == 4 and not checks["embedded model"]["ok"] and checks["can predict"]["ok"]
    assert (
        "IntegrityError" in checks["embedded model"]["detail"]
        and "model.cpu.onnx" in checks["embedded model"]["detail"]
    )


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch, wide: None, capsys: Capture) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("onnxruntime", "onnx"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    code, checks = doctor(capsys)
    assert code == 4 and checks["onnx"]["detail"] == "not installed (export)" and checks["can train"]["ok"]
    assert checks["can predict"]["detail"] == "no: pip install 'nopad[cpu]' (lacks onnxruntime)"
    assert checks["can export"]["detail"] == "no: pip install 'nopad[export]' (lacks onnx)"
    assert run(["doctor"]) == 4
    assert "-- can export" in " ".join(capsys.readouterr().out.split())
