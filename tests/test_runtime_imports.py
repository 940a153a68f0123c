"""Serving needs neither torch nor transformers, and says what it needs where that is missing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from without import python

HEAVY = ("torch", "transformers", "safetensors", "datasets", "optimum", "onnx", "onnxscript", "huggingface_hub")


def test_loading_and_predicting_without_torch(bundle: Callable[[str], Path]) -> None:
    program = (
        "import sys; from nopad.runtime import load\n"
        "with load(sys.argv[1]) as model: print(model.predict(['a film'])[0].label)"
    )
    done = python(program, HEAVY, bundle("modernbert-single-mean"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("class ")


def test_loading_and_predicting_imports_none_of_them(bundle: Callable[[str], Path]) -> None:
    program = (
        "import sys; from nopad.runtime import load\n"
        "with load(sys.argv[1]) as model: model.predict(['a film'])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = python(program, (), bundle("modernbert-single-mean"))
    assert done.returncode == 0, done.stderr
    assert not set(eval(done.stdout)) & set(HEAVY)


def test_the_command_line_without_torch(bundle: Callable[[str], Path]) -> None:
    path = bundle("modernbert-single-mean")
    program = "import sys; from nopad.runtime.cli import run; sys.exit(run(sys.argv[1:]))"
    for arguments, words in (
        (["--help"], "parity"),
        (["inspect", path], "verified"),
        (["predict", path, "a film"], "class "),
        (["doctor"], "onnx-cpu"),
    ):
        done = python(program, HEAVY, *arguments)
        assert done.returncode in ((0, 4) if arguments == ["doctor"] else (0,)), done.stderr
        assert words in done.stdout


def test_training_and_export_without_torch_say_what_to_install(tmp_path: Path) -> None:
    program = "import sys; from nopad.runtime.cli import run; sys.exit(run(sys.argv[1:]))"
    for arguments, extra in (
        (["export", tmp_path, "--output", tmp_path / "b"], "nopad[export]"),
        (["train", "--train", "x.jsonl", "--output", tmp_path / "c"], "nopad[train]"),
    ):
        done = python(program, HEAVY, *arguments)
        assert done.returncode == 4 and extra in done.stderr and "Traceback" not in done.stderr


def test_without_onnx_runtime_the_error_says_what_to_install(bundle: Callable[[str], Path]) -> None:
    program = "import sys; from nopad.runtime.cli import run; sys.exit(run(sys.argv[1:]))"
    done = python(program, ("onnxruntime",), "predict", bundle("modernbert-single-mean"), "a film")
    assert done.returncode == 4
    assert "pip install 'nopad[cpu]'" in done.stderr and "Traceback" not in done.stderr


def test_help_opens_no_engine_and_no_command() -> None:
    program = (
        "import sys; from nopad.runtime.cli import run; run(['--help'])\n"
        "print([m for m in sys.modules if m.startswith(('onnxruntime', 'torch', 'nopad.runtime.commands.'))])"
    )
    assert python(program, ()).stdout.splitlines()[-1] == "[]"


def test_planning_opens_no_engine(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a film\nsplendid\n")
    program = (
        "import sys; from nopad.runtime.cli import run; code = run(['plan', '--json', '--data', sys.argv[1]])\n"
        "print([m for m in sys.modules if m.startswith(('nopad.runtime.engines', 'nopad.runtime.predictor'))], code)"
    )
    done = python(program, HEAVY, tmp_path / "texts.txt")
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


def test_predicting_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    # ONNX Runtime's telemetry writes a device id there.
    program = "from nopad.runtime import load\nwith load() as model: model.predict(['a film'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
