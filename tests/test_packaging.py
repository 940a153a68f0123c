"""The wheel: every package and the embedded model in it, small enough, and usable on its own."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from repository import ROOT

FOLDERS = ("adapters", "charts", "model", "training", "export", "runtime", "bench", "analysis", "pipeline")
LIMIT = 8_000_000  # bytes of the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy: building in the checkout would leave build/ behind, and take stale files from it.
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.splitlines():
        if name.split("/")[0] in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(output), str(source)]
    subprocess.run(pip, check=True)
    (built,) = output.glob("nopad-*.whl")
    return built


def test_every_package_folder_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        "nopad." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == found


def test_the_wheel_holds_every_module_and_the_embedded_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py" or path.name == "py.typed" or "default" in path.relative_to(ROOT / folder).parts:
                assert not path.is_file() or f"nopad/{path.relative_to(ROOT).as_posix()}" in names
    assert "nopad/runtime/default/bundle/manifest.json" in names
    assert {"nopad/bench/report/templates/report.css", "nopad/bench/report/templates/report.js"} <= set(names)
    assert "nopad/charts/svg.css" in names
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "runtime/server/ui").iterdir()]
    assert len(pages) > 5 and {f"nopad/{path}" for path in pages} <= set(names)
    assert "nopad/runtime/default/checkpoint/model.safetensors" in names
    assert not [name for name in names if not name.startswith(("nopad/", "nopad-"))]


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= LIMIT


def test_the_installed_wheel_predicts(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import nopad.runtime; assert nopad.runtime.__file__.startswith(sys.path[0]), nopad.runtime.__file__\n"
        "from nopad.runtime import load\n"
        "print(load().predict(['a dull hour of my life that I want back'])[0].label)"
    )
    # -P -S would hide the dependencies too: the finder of the editable install is what must not win.
    run = [sys.executable, "-c", program.replace("import nopad.runtime;", _DROP_EDITABLE + "import nopad.runtime;")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "negative"


_DROP_EDITABLE = (
    "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]; "
    "[sys.modules.pop(m) for m in list(sys.modules) if m == 'nopad' or m.startswith('nopad.')]; "
)
