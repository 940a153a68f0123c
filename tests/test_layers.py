"""The house rules that a reader of docs/architecture.md relies on: its map is complete, imports run up it, files stay
readable.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

# folder -> the folders it may import from, at module level or inside functions.
ALLOWED = {
    "charts": {"charts"},
    "model": {"model"},
    "runtime": {"runtime", "model", "charts"},
    "adapters": {"adapters", "model", "runtime"},
    "training": {"training", "charts", "model", "runtime"},
    "export": {"export", "model", "runtime"},
    "bench": {"bench", "charts", "export", "model", "runtime"},
    "analysis": {"analysis", "charts", "model", "runtime"},
    "pipeline": {"pipeline", "bench", "charts", "export", "model", "runtime"},
}
# model is not free of torch; these parts of it are what the runtime takes.
TORCH_FREE = {
    f"nopad.model.{name}"
    for name in (
        *("checkpoint.read_config", "checkpoint.read_head", "config", "cpus", "errors", "head", "packages", "packing"),
        *("reliability", "rope_config"),
    )
}
# The one engine that is the encoder itself, and what differentiates it: each imports torch when it runs.
WITH_TORCH = ("engines/torch.py", "explain/gradients.py")
HEAVY = {"torch", "transformers", "safetensors", "datasets", "sklearn", "accelerate", "onnx", "onnxscript", "optimum"}
MOST_LINES = 400


def modules() -> Iterator[Path]:
    for folder in ALLOWED:
        yield from sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(("nopad", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


KNOWN = {name_of(path) for path in modules()}
# Folder -> its rows in the tables of docs/architecture.md, from the ground up: files, and subfolders with a slash.
MAP = {
    folder: re.findall(r"^\| `([\w/.]+)` \|", text, flags=re.MULTILINE)
    for folder, text in re.findall(
        r"^####? `([\w/]+)/`\n(.*?)(?=^####? |\Z)",
        (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("\n## The map\n")[2],
        flags=re.MULTILINE | re.DOTALL,
    )
}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Imported modules, and whether the import stands at the module's top level."""
    tree = ast.parse(path.read_text("utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:  # a module out of its folder, or names out of a module
                full = f"{node.module}.{alias.name}"
                yield full if full in KNOWN else node.module or "", id(node) in top


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "nopad" and len(parts) > 1:
            assert parts[1] in ALLOWED[folder], f"{path.relative_to(ROOT)} imports {name}"


def test_the_map_names_every_folder_and_every_file() -> None:
    folders = {path.parent for path in modules()}
    assert set(MAP) == {folder.relative_to(ROOT).as_posix() for folder in folders}
    for folder in folders:
        have = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
        have |= {f"{sub.name}/" for sub in folder.iterdir() if sub in folders}
        rows = MAP[folder.relative_to(ROOT).as_posix()]
        assert sorted(rows) == sorted(have), f"the table of {folder.relative_to(ROOT)}/ in docs/architecture.md"


@pytest.mark.parametrize("folder", MAP)
def test_inside_a_folder_imports_run_up_the_map(folder: str) -> None:
    rank = {row.removesuffix(".py").removesuffix("/"): place for place, row in enumerate(MAP[folder])}
    above = f"nopad.{folder.replace('/', '.')}."
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.name == "__init__.py":  # the face of its folder
            continue
        row = name_of(path).removeprefix(above).split(".")[0]
        for name, _ in imports(path):
            other = name.removeprefix(above).split(".")[0]
            if name.startswith(above) and other in rank and other != row:
                assert rank[other] < rank[row], (
                    f"{path.relative_to(ROOT)} imports {name}, which stands below it in docs/architecture.md"
                )


def test_a_test_file_carries_the_name_of_the_module_that_it_tests() -> None:
    known = {path.relative_to(ROOT).with_suffix("").as_posix() for path in modules()}
    known |= {f"scripts/{path.stem}" for path in (ROOT / "scripts").glob("*.py")}
    for path in (ROOT / "tests").glob("*/**/test_*.py"):
        place = path.relative_to(ROOT / "tests")
        words = place.stem.removeprefix("test_").split("_")
        names = {(place.parent / "_".join(words[:end])).as_posix() for end in range(1, len(words) + 1)}
        assert names & known, f"tests/{place} is named for no module of {place.parent}"


def test_training_and_export_do_not_know_each_other_nor_model_the_command_line() -> None:
    assert "export" not in ALLOWED["training"] and "training" not in ALLOWED["export"]
    # Of the runtime, training takes only how a command talks, how a file of texts is read, what tags mean, and bundles.
    taken = {name for path in (ROOT / "training").rglob("*.py") for name, _ in imports(path) if "runtime" in name}
    others = {name for name in taken if not name.startswith("nopad.runtime.data.")}
    own = ("atomic", "bundle", "console", "entities", "errors")
    assert others == {"nopad.runtime", *(f"nopad.runtime.{name}" for name in own)}


def test_the_runtime_imports_nothing_heavy() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        for name, top in imports(path):
            if path.as_posix().endswith(WITH_TORCH) and not top:
                continue
            assert name.split(".")[0] not in HEAVY, f"{path.relative_to(ROOT)} imports {name}"
            if name.startswith("nopad.model"):
                assert name in TORCH_FREE, f"{path.relative_to(ROOT)} imports {name}"
    for name in TORCH_FREE:
        for imported, _ in imports(ROOT / Path(*name.split(".")[1:]).with_suffix(".py")):
            assert imported.split(".")[0] not in HEAVY, f"{name} imports {imported}"


def test_the_web_framework_is_imported_by_the_server_alone_and_the_server_by_its_command() -> None:
    web = {"fastapi", "grpc", "prometheus_client", "pydantic", "starlette", "uvicorn"}
    for path in modules():
        where = path.relative_to(ROOT).as_posix()
        if where.startswith("runtime/server/"):
            continue
        for name, top in imports(path):
            assert name.split(".")[0] not in web, where
            if name.startswith("nopad.runtime.server"):
                if where == "runtime/ray/serving.py":  # the server again, without its sockets
                    continue
                # The defaults of the command's options are the settings': a file of plain records.
                allowed = not top or name == "nopad.runtime.server.settings"
                assert where == "runtime/commands/serve.py" and allowed, where
    assert all(
        name.startswith(("__future__", "collections", "dataclasses", "pathlib", "typing"))
        for name, _ in imports(ROOT / "runtime/server/settings.py")
    )


def test_ray_is_imported_by_its_folder_alone_and_where_it_is_used() -> None:
    for path in modules():
        for name, top in imports(path):
            if name.split(".")[0] == "ray":
                assert not top and path.parent == ROOT / "runtime" / "ray", path
            if name.startswith("nopad.runtime.ray"):
                own = path.parent == ROOT / "runtime" / "ray"
                assert own or (not top and path.parent == ROOT / "runtime" / "commands"), path


def test_an_engines_library_is_imported_when_it_is_opened() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        for name, top in imports(path):
            assert not (top and name.split(".")[0] in ("onnxruntime", "tensorrt", "tensorrt_rtx", "cuda")), path


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_has_one_subject_and_a_docstring_that_names_it(path: Path) -> None:
    text = path.read_text("utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert len(text.splitlines()) <= MOST_LINES
