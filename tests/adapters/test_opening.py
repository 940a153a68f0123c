"""A bundle behind an adapter: a folder or a model of the right task, opened late, and again in another process."""

import copy
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from without import python

from nopad.adapters.opening import Opened, needs
from nopad.runtime import load
from nopad.runtime.errors import BundleError, EnvironmentProblem, UsageError

ADAPTERS = {  # module -> what it imports, and its extra
    "haystack": ("haystack", "haystack-ai", "haystack"),
    "langchain": ("langchain_core", "langchain-core", "langchain"),
    "llamaindex": ("llama_index", "llama-index-core", "llama-index"),
    "pandas": ("pandas", "pandas", "pandas"),
    "polars": ("polars", "polars", "polars"),
    "sklearn": ("sklearn", "scikit-learn", "sklearn"),
    "spacy": ("spacy", "spacy", "spacy"),
}


def test_the_task_is_checked_before_an_engine_is_opened(prompted: Callable[[str], tuple[Path, Path]]) -> None:
    _, bundle = prompted("both")
    with pytest.raises(UsageError) as caught:
        Opened(bundle, "token-embeddings", adapter="NopadThing", load_options={"engine": "nobody's"})
    assert str(caught.value) == (
        f"NopadThing needs a bundle for token-embeddings; {bundle} does embeddings: "
        "export its checkpoint with --task token-embeddings"
    )
    with pytest.raises(UsageError, match="needs a bundle for rerank; .* does text-classification$"):
        Opened(None, "rerank", adapter="NopadThing")
    with pytest.raises(BundleError, match="the folder does not exist"):
        Opened("nowhere", adapter="NopadThing")


def test_a_model_is_shared_and_copied_as_its_path() -> None:
    with load(threads=1) as model:
        opened = Opened(model, "text-classification", adapter="test")
        assert opened.model is model
        with pytest.raises(UsageError, match="this model is open already"):
            Opened(model, adapter="test", load_options={"threads": 1})
        other = pickle.loads(pickle.dumps(opened))
    assert other.path == str(model.bundle.path)
    assert other.model is not model and other.model is other.model
    assert other.model.predict(["splendid"])[0].label == "positive"
    assert copy.deepcopy(other).model is not other.model


def test_a_forked_child_opens_its_own() -> None:
    opened = Opened(None, adapter="test", load_options={"threads": 1})
    assert opened.model.predict(["splendid"])[0].label == "positive"
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        answers.put((os.getpid(), len(opened._models), opened.model.predict(["dull"])[0].label))

    process = context.Process(target=child)
    process.start()
    pid, inherited, label = answers.get()
    process.join(30)
    assert (pid, inherited, label) == (process.pid, 1, "negative") and process.exitcode == 0
    assert os.getpid() in opened._models and process.pid not in opened._models


def test_a_missing_package_names_its_extra() -> None:
    program = (
        "import importlib, sys; from nopad.runtime.errors import EnvironmentProblem\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(f'nopad.adapters.{name}')\n"
        "    except EnvironmentProblem as error: print(error)"
    )
    done = python(program, tuple(module for module, _, _ in ADAPTERS.values()), *ADAPTERS)
    assert done.stdout.splitlines() == [
        f"the adapter for {extra} needs the package {package}: pip install 'nopad[{extra}]'"
        for _, package, extra in ADAPTERS.values()
    ], done.stderr


def test_other_errors_of_an_import_are_not_hidden() -> None:
    with pytest.raises(EnvironmentProblem, match="needs the package nobody_knows"), needs("pandas"):
        import nobody_knows  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ValueError, match="own"), needs("pandas"):
        raise ValueError("own")


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_imports_neither_torch_nor_another_framework(name: str) -> None:
    # Sources, not `sys.modules`: spaCy and others import torch where it is installed.
    import ast
    import sys

    from repository import ROOT

    tree = ast.parse((ROOT / "adapters" / f"{name}.py").read_text("utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {each.split(".")[0] for each in found} - sys.stdlib_module_names <= {"nopad", "numpy", ADAPTERS[name][0]}
