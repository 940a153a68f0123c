"""Bundles that the adapters' tests share, and no network: Haystack and LangSmith would report what is run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nopad.runtime import Model, load

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before any test imports it
os.environ["LANGSMITH_TRACING"] = "false"

# Prompts of two folders of sentence-transformers: as models are published now, and as E5 was.
PROMPTS: dict[str, dict[str, Any]] = {
    "both": {"prompts": {"query": "ask: ", "document": "tell: ", "other": "what else? "}},
    "default": {"prompts": {"passage": "passage: ", "query": "query: "}, "default_prompt_name": "passage"},
}


@pytest.fixture(scope="session")
def unverified() -> dict[str, Any]:
    """Options of `load` for the bundles below, which no gate has judged."""
    return {"allow_unverified": True, "threads": 1}


@pytest.fixture(scope="session")
def prompted(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> Callable[[str], tuple[Path, Path]]:
    """By a name of `PROMPTS`: a folder of sentence-transformers, and its bundle."""
    from st_folders import Case

    from nopad.export.bundle import write_bundle
    from nopad.model.checkpoint.load import load_checkpoint

    made: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder, bundle = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp(f"{name}-bundle")
            Case(architecture="modernbert", model=PROMPTS[name]).build(checkpoint("modernbert-embed-default"), folder)
            write_bundle(load_checkpoint(folder), bundle)
            made[name] = folder, bundle
        return made[name]

    return get


@pytest.fixture(scope="session")
def ungated(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Callable[[str], Path]:
    """The bundle of a checkpoint of `reference_models.CASES`."""
    from reference_models import CASES

    from nopad.export.bundle import write_bundle
    from nopad.model.checkpoint.load import load_checkpoint

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            write_bundle(load_checkpoint(checkpoint(name), **CASES[name].load), made[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def opened(ungated: Callable[[str], Path], unverified: dict[str, Any]) -> Iterator[Callable[[str], Model]]:
    """The opened model of an `ungated` bundle."""
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            made[name] = load(ungated(name), **unverified)
        return made[name]

    yield get
    for model in made.values():
        model.close()


@pytest.fixture(scope="session")
def embedding_model(prompted: Callable[[str], tuple[Path, Path]], unverified: dict[str, Any]) -> Iterator[Model]:
    """The opened model of the prompts "both"."""
    with load(prompted("both")[1], **unverified) as model:
        yield model
