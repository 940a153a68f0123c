"""A tokenizer and configuration to train from scratch, and the real reviews."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets", reason="training needs: pip install 'nopad[train]'")
pytest.importorskip("sklearn", reason="training needs: pip install 'nopad[train]'")
pytest.importorskip("accelerate", reason="training needs: pip install 'nopad[train]'")

from training_samples import ROOT, make_scratch, sentences, write_jsonl  # noqa: E402


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Neither the user's cache nor another test's: rows must come from the files of this test.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch")
    return make_scratch(folder, write_jsonl(folder / "texts.jsonl", sentences(300, seed=99)))


@pytest.fixture(scope="session")
def imdb() -> Path:
    """The real reviews: $NOPAD_DATA/imdb, or shared/data/imdb beside the repository."""
    base = Path(os.environ.get("NOPAD_DATA") or ROOT.parent / "shared" / "data")
    folder = base / "imdb"
    if not (folder / "train.jsonl").is_file():
        pytest.skip(f"no {folder}/train.jsonl; set NOPAD_DATA to the folder with the test data")
    return folder
